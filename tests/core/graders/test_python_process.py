"""Python graders in their processes: what they can compute, and what they can't reach."""

import asyncio
import os
from contextlib import suppress
from typing import Any

import psutil
import pytest

from app.core.errors import InvalidRequest
from app.core.graders import python_process
from app.core.graders.grades import GradeErrorKind, GradingFailed
from app.core.graders.python_process import PythonProcesses, check_allowed
from app.core.graders.shapes import grader_adapter
from app.core.settings import Settings
from tests.core.graders.test_shapes import VALID

ITEM: dict[str, Any] = {"reference_answer": "fuzzy wuzzy had no hair"}
SAMPLE: dict[str, Any] = {"output_text": "fuzzy wuzzy was a bear"}


def run(body: str, **settings: Any) -> float:
    source = "def grade(sample, item):\n" + "\n".join(f"    {line}" for line in body.split("\n"))
    processes = PythonProcesses(Settings(allow_python_graders=True, **settings))
    return asyncio.run(processes.run(source, SAMPLE, ITEM))


def failure(body: str, **settings: Any) -> str:
    with pytest.raises(GradingFailed) as caught:
        run(body, **settings)
    assert caught.value.kind is GradeErrorKind.PYTHON_RUNTIME
    return caught.value.message


def running() -> list[psutil.Process]:
    """The processes of graders; other tests may have left others."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if any("python_child" in part for part in child.cmdline()):
                found.append(child)
    return found


def test_openais_example_gives_its_score() -> None:
    source = """
from rapidfuzz import fuzz, utils

def grade(sample, item) -> float:
    output_text = sample["output_text"]
    reference_answer = item["reference_answer"]
    return fuzz.WRatio(output_text, reference_answer, processor=utils.default_process) / 100.0
"""
    processes = PythonProcesses(Settings(allow_python_graders=True))

    assert asyncio.run(processes.run(source, SAMPLE, ITEM)) == pytest.approx(0.7556, abs=1e-4)


@pytest.mark.parametrize(
    ("body", "score"),
    [
        ("return 1", 1),
        ("return True", 1),
        ("from datetime import datetime\nreturn datetime.strptime('2020', '%Y').year", 2020),
        ("import re, json, statistics as s\nreturn s.mean(json.loads('[1, 2]'))", 1.5),
        ("import numpy as np\nreturn np.ones((3, 3)).sum()", 9),
        ("print('x' * 1_000_000)\nimport sys\nprint('y', file=sys.stderr)\nreturn 2", 2),
    ],
)
def test_a_grader_computes(body: str, score: float) -> None:
    assert run(body) == score


ATTEMPTS = {
    "read a file": "return len(open('/etc/hostname').read())",
    "read its environment": "return len(open('/proc/self/environ').read())",
    "write a file": "open('/tmp/grader', 'w').write('x')",
    "list a folder": "import os\nreturn len(os.listdir('/'))",
    "look at a file": "import os\nreturn os.stat('/etc/passwd').st_size",
    "start a process": "import os\nreturn os.fork()",
    "run a program": "import os\nos.execv('/bin/true', ['true'])",
    "start a thread": "import threading\nthreading.Thread(target=print).start()",
    "open a socket": "import sys\nc = sys.modules['ctypes']\nlibc = c.CDLL(None, use_errno=True)\n"
    "if libc.socket(2, 1, 0) < 0: raise OSError(c.get_errno(), 'socket')",
    "end another process": "import os\nos.kill(os.getppid(), 0)",
    "end its own limits": "import sys\nsys.modules['resource'].setrlimit(0, (-1, -1))",
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_grader_can_not(attempt: str) -> None:
    problem = failure(ATTEMPTS[attempt])

    assert any(
        reason in problem for reason in ("[Errno 1]", "can't start new thread", "not allowed to raise")
    )


def test_a_grader_has_none_of_the_secrets_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_API_KEY", "secret")

    assert run("import os\nreturn sum('secret' in value for value in os.environ.values())") == 0


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("x = 1\nreturn x / 0", "line 3: ZeroDivisionError: division by zero"),
        ("return 'much'", "ValueError: could not convert string to float: 'much'"),
        ("return float('nan')", "`grade` returned nan"),
        ("import socket", "ImportError: a grader can't import 'socket', only __future__"),
        ("return bytearray(3 << 30)", "MemoryError"),
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("import os\nos._exit(0)", "ended before it returned a score"),
        ("import os\nwhile True: os.write(3, b'x' * 65536)", "ended before it returned a score"),
    ],
)
def test_what_goes_wrong_in_a_grader_is_said(body: str, problem: str) -> None:
    assert problem in failure(body)


@pytest.mark.parametrize("body", ["while True: pass", "import time\ntime.sleep(100)"])
def test_a_grader_that_takes_too_long_is_ended(body: str) -> None:
    assert "longer than the 0.5 s" in failure(body, python_grader_seconds=0.5)
    assert not running()


def test_a_cancelled_grade_ends_its_process() -> None:
    async def cancel() -> None:
        processes = PythonProcesses(Settings(allow_python_graders=True))
        source = "def grade(sample, item):\n    while True: pass"
        task = asyncio.create_task(processes.run(source, SAMPLE, ITEM))
        while not running():
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(cancel())

    assert not running()


def test_a_host_that_can_not_isolate_runs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """The child is the real one; its module for seccomp fails as where libseccomp is missing."""
    child = tmp_path / "python_child.py"
    text = python_process._CHILD.read_text()
    child.write_text(text.replace("import pyseccomp", "raise RuntimeError('Unable to find libseccomp')"))
    monkeypatch.setattr(python_process, "_CHILD", child)

    with pytest.raises(
        GradingFailed, match=r"can't isolate a process, RuntimeError: Unable to find"
    ) as caught:
        run("return 1")

    assert caught.value.kind is GradeErrorKind.PYTHON_SERVER


def test_python_graders_are_off_unless_allowed() -> None:
    processes = PythonProcesses(Settings())
    grader = grader_adapter.validate_python(VALID["python"])
    multi = grader_adapter.validate_python(
        VALID["multi"] | {"graders": [VALID["python"]], "calculate_output": "p"}
    )

    with pytest.raises(GradingFailed, match="TUNESMITH_ALLOW_PYTHON_GRADERS"):
        asyncio.run(processes.run("def grade(sample, item): return 1", {}, {}))
    for one in (grader, multi):
        with pytest.raises(InvalidRequest, match="not allowed"):
            check_allowed(one, Settings())
        check_allowed(one, Settings(allow_python_graders=True))
    check_allowed(grader_adapter.validate_python(VALID["string_check"]), Settings())


def test_no_more_graders_run_than_there_are_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    most = 0

    async def run_three() -> None:
        nonlocal most
        processes = PythonProcesses(Settings(allow_python_graders=True))
        source = "def grade(sample, item): return 1"
        tasks = [asyncio.create_task(processes.run(source, {}, {})) for _ in range(3)]
        while not all(task.done() for task in tasks):
            most = max(most, len(running()))
            await asyncio.sleep(0.001)

    asyncio.run(run_three())

    assert most == 1
