"""`python -m worker --check` and a worker's own examination, as real processes."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from app.core.settings import Settings
from worker.doctor.findings import failure, findings_adapter, ok, render, warning
from worker.doctor.process import Examination


def check(settings: Settings, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker", "--check", *arguments],
        env=os.environ | {"TUNESMITH_DATA_DIR": str(settings.data_dir), "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
    )


def test_a_machine_that_lacks_nothing_exits_with_0(settings: Settings) -> None:
    ended = check(settings)
    assert ended.returncode == 0, ended.stdout
    assert ended.stdout.endswith("Nothing is in the way.\n")
    assert len(ended.stdout.splitlines()) <= 24


def test_a_missing_gpu_that_is_required_exits_with_1(settings: Settings) -> None:
    ended = check(settings, TUNESMITH_REQUIRE_GPU="true", CUDA_VISIBLE_DEVICES="")
    assert ended.returncode == 1
    assert "failure  GPU" in ended.stdout


def test_a_bad_setting_is_named_without_its_value(settings: Settings) -> None:
    ended = check(settings, TUNESMITH_PORT="secret")
    assert ended.returncode == 1
    assert "port:" in ended.stdout
    assert "secret" not in ended.stdout


def test_the_screen_has_a_line_for_each_finding_and_its_hint() -> None:
    screen = render([ok("disk", "much"), warning("memory", "little"), failure("GPU", "none", "Buy one.")])
    assert screen.splitlines() == [
        "ok       disk          much",
        "warning  memory        little",
        "failure  GPU           none",
        "                       Buy one.",
        "1 of 3 failed.",
    ]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a module that a test writes."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "scripted_doctor.py"


def examine(doctor: Path, code: str) -> Examination:
    doctor.write_text(code)
    ended = threading.Event()
    examination = Examination(ended.set, module="scripted_doctor")
    examination.start()
    assert ended.wait(30)
    return examination


def test_failures_are_sentences(doctor: Path) -> None:
    found = findings_adapter.dump_json([ok("disk", "much"), failure("GPU", "none.", "Buy one.")]).decode()
    examination = examine(doctor, f"print({found!r})")
    assert examination.failures == ["GPU: none. Buy one."]
    examination.stop()


def test_an_examination_that_dies_is_a_failure_itself(doctor: Path) -> None:
    examination = examine(doctor, "raise SystemExit('no torch here')")
    assert examination.failures == [
        "doctor: It ended with status 1: no torch here Run `python -m worker --check`."
    ]
    examination.stop()


def test_an_examination_is_ended_with_the_worker(doctor: Path, tmp_path: Path) -> None:
    doctor.write_text(f"import time; open({str(tmp_path / 'begun')!r}, 'w'); time.sleep(600)")
    examination = Examination(lambda: None, module="scripted_doctor")
    examination.start()
    examination.stop()
    assert examination.failures == []
    assert examination._process is None or examination._process.poll() is not None
