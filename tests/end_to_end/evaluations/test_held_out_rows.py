"""A real job, and an evaluation on what it held out, while the engine and the worker are killed."""

from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.box import Box, running_box
from tests.tiny_model import NAME
from tests.waiting import wait_for
from worker.processes.engine_process import ENGINE_MODULE

# All rows have one answer, so that a few steps are enough to learn it.
ROWS = [
    {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": "one two three"}]}
    for n in range(40)
]
GRADERS = [
    {"type": "perplexity", "name": "perplexity", "reference": "{{item.reference}}"},
    {
        "type": "text_similarity",
        "name": "similar",
        "input": "{{sample.output_text}}",
        "reference": "{{item.reference}}",
        "evaluation_metric": "rouge_l",
    },
]


def wait_until(box: Box, evaluation_id: str, *, done: int | None = None) -> dict[str, Any]:
    """Wait for the end of an evaluation, or until so many of its answers are graded."""

    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = box.get_good(box.client.get(f"/evaluations/{evaluation_id}"))
        is_over = found["state"] not in ("queued", "running")
        return found if is_over or (done is not None and found["done"] >= done) else None

    return wait_for(look, f"{evaluation_id} to go on", timeout_seconds=240)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_adapter_is_better_than_its_base_on_what_its_job_held_out(tmp_path: Path) -> None:
    with running_box(tmp_path, lease_seconds="5", evaluation_requests="2") as box:
        worker = box.start_worker()
        job = box.submit(
            base_model=NAME,
            dataset=box.upload(ROWS),
            name="helper",
            lora={"r": 8},
            training={"validation_split": 0.25, "max_steps": 30, "learning_rate": 0.01},
        )
        box.wait_for_state(job, "succeeded")
        body = {
            "held_out_of": job,
            "models": [NAME, "helper"],
            "graders": GRADERS,
            "sampling": {"max_new_tokens": 64},
        }
        evaluation_id = box.get_good(box.client.post("/evaluations", json=body))["id"]
        wait_until(box, evaluation_id, done=2)
        engine = box.child(worker, ENGINE_MODULE)
        assert engine is not None
        engine.kill()
        wait_until(box, evaluation_id, done=8)
        worker.kill()
        box.start_worker()
        found = wait_until(box, evaluation_id)

        assert found["state"] == "succeeded", (found["error"], box.log()[-3000:])
        assert (found["rows"], found["done"], found["failed"]) == (10, 20, 0)
        held_out = {
            row["line"] for row in box.client.get(f"/evaluations/{evaluation_id}/rows").json()["data"]
        }
        assert len(held_out) == 10
        base, tuned = found["results"]["models"]
        assert tuned["graders"][0]["mean"]["value"] < base["graders"][0]["mean"]["value"]
        assert tuned["graders"][0]["against_baseline"]["wins"] == 10
        csv = box.client.get(f"/evaluations/{evaluation_id}/results.csv").text
        assert len(csv.splitlines()) >= 11
