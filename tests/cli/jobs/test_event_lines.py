import math

import pytest

from app.cli.jobs.event_lines import render, sparkline
from app.cli.jobs.views import EventView


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([], ""),
        ([1.0], "▁"),
        ([3.0, 2.0, 1.0], "█▅▁"),
        ([None, math.nan, 1.0, 2.0], "▁█"),
        ([2.0, 2.0], "▁▁"),
    ],
)
def test_a_sparkline_is_as_high_as_its_values(values: list[float | None], bars: str) -> None:
    assert sparkline(values) == bars


def test_a_long_sparkline_is_drawn_from_means() -> None:
    assert sparkline([4.0, 4.0, 3.0, 3.0, 1.0, 1.0], width=3) == "█▆▁"


@pytest.mark.parametrize(
    ("kind", "content", "text"),
    [
        ("log", {"message": "a\nb\x1b[2J"}, "log         a\n" + " " * 22 + "b[2J"),
        ("warning", {"message": "Cut.", "code": "rows_cut"}, "warning     Cut. (rows_cut)"),
        ("checkpoint", {"step": 25}, "checkpoint  step 25 saved"),
        ("eval", {"step": 5, "epoch": 1, "loss": None}, "eval        step 5  epoch 1.00  eval loss nan"),
        (
            "samples",
            {"step": 5, "answers": [{"prompt": "How\nso?", "answer": "x" * 70}]},
            "samples     step 5  sample answers\n" + " " * 22 + f"How so? → {'x' * 59}…",
        ),
        (
            "final_eval",
            {"rows": [{}, {}], "base_loss": 3.0, "adapter_loss": None},
            "final_eval  2 rows held out  loss of the base model 3.0000, with the adapter nan",
        ),
        ("state", {"state": "running", "phase": "saving"}, "state       running: saving"),
        ("from the future", {"message": "Hi"}, "from the future  Hi"),
    ],
)
def test_an_event_is_a_line(kind: str, content: dict[str, object], text: str) -> None:
    event = EventView(seq=1, at="2026-11-25T00:00:00Z", level="info", type=kind, data=content)  # type: ignore[arg-type]
    assert render(event)[10:] == text
