"""The CPU stack from build to removal, used from outside with curl."""

import json
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_for
from worker.models import demo_model

from . import engine
from .engine import Compose

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tunesmith-help.jsonl"
# Other tests may run on the machine meanwhile.
pytestmark = pytest.mark.timeout(1200)
WAIT_SECONDS = "600"
# The engine's process id 1 is an init; its only child is the service. Its own user may kill it.
KILL_WORKER = "import os; os.kill(int(open('/proc/1/task/1/children').read().split()[0]), 9)"
API_MEGABYTES = 265  # more than its base, which has 145 at most; a third is what S3 and graders need
JOB = {
    "name": "helper",
    "base_model": demo_model.NAME,
    "lora": {"r": 8, "target_modules": "all-linear"},
    "training": {
        "max_steps": 16,
        "per_device_train_batch_size": 2,
        "learning_rate": 2e-3,
        "logging_steps": 1,
        "save_steps": 4,
    },
}


@pytest.fixture(scope="module")
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def stack(port: int) -> Iterator[Compose]:
    """A built, healthy stack with the small model in its volume; removed at the end with its volumes."""
    stack = Compose("tunesmith-check", "cpu", *engine.overrides(), TUNESMITH_PORT=str(port))
    model = demo_model.ensure(ROOT / "data" / "models")
    stack.run("down", "--volumes", "--remove-orphans")
    stack.show("build")
    try:
        stack.run("up", "--detach", "--wait", "--wait-timeout", WAIT_SECONDS)
        stack.run("cp", str(model), f"worker:/models/{model.name}")
        yield stack
    except BaseException:
        stack.show("logs", "--no-color", "--tail", "60")
        raise
    finally:
        stack.run("down", "--volumes", "--remove-orphans")


@pytest.fixture(scope="module")
def api(stack: Compose, port: int) -> "Api":
    return Api(port)


class Api:
    """curl against the API."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def call(self, path: str, *arguments: str) -> Any:
        return json.loads(self.text(path, *arguments))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self.call(path, "--header", "Content-Type: application/json", "--data", json.dumps(body))

    def text(self, path: str, *arguments: str) -> str:
        command = ["curl", "--silent", "--show-error", "--fail-with-body", *arguments, self._url + path]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout


@pytest.fixture(scope="module")
def job(stack: Compose, api: Api) -> dict[str, Any]:
    """A finished job whose worker was killed in mid training."""
    dataset = api.call("/datasets", "--form", f"file=@{EXAMPLE}")
    job_id = api.post("/jobs", {**JOB, "dataset": dataset["id"]})["id"]

    def has_checkpoint() -> bool:
        return bool(api.call(f"/jobs/{job_id}")["progress"]["step"] >= 6)

    wait_for(has_checkpoint, "a step after the first checkpoint", timeout_seconds=600)
    stack.execute("worker", "python", "-c", KILL_WORKER)
    api.text(f"/jobs/{job_id}/logs?follow=true", "--no-buffer", "--max-time", "600")  # until the job ends
    found: dict[str, Any] = api.call(f"/jobs/{job_id}")
    return found


def test_up_means_ready(stack: Compose, api: Api) -> None:
    readiness = api.call("/ready")
    assert readiness["ready"]
    assert [worker["roles"] for worker in readiness["workers"]] == [["serve", "train"]]


def test_nobody_is_root_and_the_api_s_files_can_t_be_changed(stack: Compose) -> None:
    for service in ("api", "worker"):
        assert stack.execute(service, "id", "-u").stdout.strip() == b"1000"
        touch = stack.execute(service, "touch", "/opt/tunesmith/app/new.py")
        assert touch.returncode != 0
    assert b"Read-only" in stack.execute("api", "touch", "/var/tmp/new").stderr


def test_the_api_s_image_is_small_and_knows_no_ml(stack: Compose) -> None:
    image = stack.container("api")["Image"]
    assert engine.added_bytes(image) < API_MEGABYTES * 1_000_000
    for package in ("torch", "transformers", "numpy", "worker"):
        assert b"No module named" in stack.execute("api", "python", "-c", f"import {package}").stderr


def test_the_doctor_finds_nothing_in_the_way(stack: Compose) -> None:
    ended = stack.execute("worker", "tunesmith", "doctor")
    assert ended.returncode == 0, ended.stdout.decode()
    assert demo_model.NAME.encode() in ended.stdout
    assert b"CPU library loaded" in ended.stdout


def test_the_api_s_image_grades(api: Api) -> None:
    """With libraries that need no NumPy, and Python in a process of its own."""
    wanted = {"reference": "the cat sat on the mat", "input": "the cat sat on a mat"}
    similarity = {"type": "text_similarity", "name": "bleu", "evaluation_metric": "bleu", **wanted}
    source = "def grade(sample, item):\n    return len(sample['output_text'])"
    python = {"type": "python", "name": "length", "source": source}

    found = [
        api.post("/v1/fine_tuning/alpha/graders/run", {"grader": grader, "model_sample": "four"})
        for grader in (similarity, python)
    ]

    assert [round(one["reward"], 4) for one in found] == [0.5373, 4]


def test_an_upload_may_be_larger_than_the_api_s_tmp(api: Api, tmp_path: Path) -> None:
    row = {"prompt": "Question?", "completion": "word " * 2000}
    (tmp_path / "large.jsonl").write_text(f"{json.dumps(row)}\n" * 4000)  # 40 MB; /tmp has 16
    dataset = api.call("/datasets", "--form", f"file=@{tmp_path / 'large.jsonl'}")
    assert dataset["rows"] == 4000


def test_a_job_survives_its_worker(stack: Compose, job: dict[str, Any], api: Api) -> None:
    assert job["state"] == "succeeded", job["error"]
    assert [attempt["exit_reason"] for attempt in job["attempts"]] == ["worker_lost", "succeeded"]
    assert stack.container("worker")["RestartCount"] == 1
    steps = [point["step"] for point in api.call(f"/jobs/{job['id']}/metrics")["data"]]
    assert steps == sorted(set(steps))
    assert steps[-1] == JOB["training"]["max_steps"]
    assert "from the checkpoint" in api.text(f"/jobs/{job['id']}/logs")


def test_the_adapter_answers_and_not_as_the_base_model_does(job: dict[str, Any], api: Api) -> None:
    question = {"messages": [{"role": "user", "content": "How do I stop a running job?"}], "temperature": 0}
    answer = api.post("/generate", {**question, "adapter": job["adapter"], "max_new_tokens": 40})
    of_the_base = api.post("/generate", {**question, "base_model": demo_model.NAME, "max_new_tokens": 40})
    assert answer["usage"]["completion_tokens"] > 0
    assert answer["text"].strip()
    assert answer["text"] != of_the_base["text"]


def test_a_backup_restores_in_another_place(
    stack: Compose, job: dict[str, Any], tmp_path: Path, port: int
) -> None:
    with (tmp_path / "box.tar").open("wb") as tar:
        stack.run("exec", "-T", "api", "tunesmith", "backup", "-", stdout=tar)
    other = Compose("tunesmith-check-restored", "cpu", *engine.overrides(), TUNESMITH_PORT=str(port))
    try:
        with (tmp_path / "box.tar").open("rb") as tar:
            other.run("run", "--rm", "-T", "--no-deps", "api", "tunesmith", "restore", "-", stdin=tar)
        stack.run("stop", "api")
        other.run("up", "--detach", "--wait", "--wait-timeout", WAIT_SECONDS, "api")
        restored = Api(port)
        assert restored.call(f"/jobs/{job['id']}") == job
        restored.text(
            f"/adapters/{job['adapter']}/download?format=tar", "--output", str(tmp_path / "adapter")
        )
        with tarfile.open(tmp_path / "adapter") as adapter:
            assert any(name.endswith("adapter_model.safetensors") for name in adapter.getnames())
    finally:
        other.run("down", "--volumes")
        stack.run("up", "--detach", "--wait", "--wait-timeout", WAIT_SECONDS, "api")


def test_stopping_ends_both_with_exit_status_0(stack: Compose, api: Api) -> None:
    stack.run("stop")
    states = [stack.container(service)["State"] for service in ("api", "worker")]
    assert [(state["Status"], state["ExitCode"]) for state in states] == [("exited", 0)] * 2
