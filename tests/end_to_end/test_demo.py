"""The demo's path on the real small model, with real processes: what `make demo` shows must be true.

Half of the demo's epochs teach enough for that.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.box import Box

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ROWS = [json.loads(line) for line in (EXAMPLES / "tunesmith-help.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def models_dir() -> Path:
    """The folder `make demo` fills, so that the model is fetched once."""
    folder = ROOT / "data" / "models"
    subprocess.run([sys.executable, "-m", "worker.demo_model", "--models-dir", str(folder)], check=True)
    return folder


@pytest.fixture
def box(tmp_path: Path, models_dir: Path) -> Iterator[Box]:
    box = Box(tmp_path, models_dir)
    yield box
    box.close()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_adapter_learns_what_the_rows_teach(box: Box) -> None:
    box.start_api()
    box.start_worker()
    job_spec = json.loads((EXAMPLES / "demo-job.json").read_text())
    job_spec["training"]["num_train_epochs"] /= 2
    job_id = box.submit(**job_spec, dataset=box.upload(ROWS))
    job = box.wait_for_state(job_id, "succeeded", "failed", timeout_seconds=1400)
    assert job["state"] == "succeeded", job["error"]
    losses = [event["data"]["loss"] for event in box.events(job_id, "metrics")]
    assert losses[-1] < losses[0] / 3
    question = "How do I stop a running job?"
    assert all(question != row["messages"][0]["content"] for row in ROWS)
    assert "/cancel" not in box.answer(question, base_model=job_spec["base_model"])
    assert "/jobs/{id}/cancel" in box.answer(question, adapter=job["adapter"])
