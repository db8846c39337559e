"""The wheel is complete, and `tunesmith up` runs from it, outside the checkout, with and without a worker."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]
SOURCES = ("app", "worker", "migrations", "examples", "pyproject.toml", "setup.py", "README.md", "LICENSE")
# Neither Python nor pip may find the checkout.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a `build` folder in the checkout may hold modules that are no longer there."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    _pip("wheel", "--no-deps", "--wheel-dir", str(target), str(source))
    return next(target.glob("*.whl"))


def test_the_wheel_holds_every_file_and_no_top_level_package_but_app_and_worker(wheel: Path) -> None:
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    code = {
        path.relative_to(ROOT).as_posix() for folder in ("app", "worker") for path in _files(ROOT / folder)
    }
    scripts = {f"app/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "migrations").rglob("*.py")}
    examples = {f"app/{path.relative_to(ROOT).as_posix()}" for path in _files(ROOT / "examples")}
    assert files == code | scripts | examples


@pytest.mark.slow
def test_without_the_worker_tunesmith_up_runs_the_api_and_says_so(wheel: Path, tmp_path: Path) -> None:
    python = _make_environment(tmp_path)
    _pip("--python", str(python), "install", "-c", str(ROOT / "constraints.txt"), str(wheel))
    with _running(python, tmp_path) as (url, output):
        _expect_database(url)
        wait_for(lambda: "the worker is not installed here" in output.read_text(), "the note on the worker")


@pytest.mark.slow
def test_with_the_worker_tunesmith_up_gets_ready(wheel: Path, tmp_path: Path) -> None:
    python = _make_environment(tmp_path)
    _pip("--python", str(python), "install", "--no-deps", str(wheel))
    # What the worker needs has gigabytes: it comes from the environment of this test, which is a path
    # after the wheel's own; a .pth file there, which leads to the checkout, is not read.
    _site_packages(python).joinpath("tested.pth").write_text(sysconfig.get_path("purelib"))
    with _running(python, tmp_path) as (url, output):
        _expect_database(url)
        wait_for(lambda: "Ctrl-C stops it." in output.read_text(), "a worker that is ready")
        assert httpx.get(f"{url}/ready").status_code == 200


@contextmanager
def _running(python: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """`tunesmith up` in an empty folder; yields its URL and the file with its output."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    work, output = folder / "work", folder / "output.txt"
    work.mkdir()
    environment = {**ENVIRONMENT, "TUNESMITH_DATA_DIR": str(work / "data")}
    found = subprocess.run(
        [python, "-c", "import app, worker; print(app.__file__, worker.__file__)"],
        cwd=work, env=environment, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert all(Path(path).is_relative_to(_site_packages(python)) for path in found)
    with output.open("wb") as file:
        up = subprocess.Popen(
            [python.parent / "tunesmith", "up", "--port", str(port)],
            cwd=work,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: up.poll() is not None or _answers(url), "the API")
        assert up.poll() is None, output.read_text()
        yield url, output
    finally:
        up.send_signal(signal.SIGINT)
        status = up.wait(120)
    assert status == 0, output.read_text()


def _expect_database(url: str) -> None:
    """The schema is there: a dataset is stored and listed; and the dashboard's files are served."""
    row = b'{"prompt": "Is it there?", "completion": "It is."}\n'
    made = httpx.post(f"{url}/datasets", files={"file": ("rows.jsonl", row)}, timeout=60)
    assert made.status_code == 201, made.text
    assert [dataset["id"] for dataset in httpx.get(f"{url}/datasets").json()["data"]] == [made.json()["id"]]
    assert "<title>Tunesmith" in httpx.get(f"{url}/", follow_redirects=True).text


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.HTTPError:
        return False


def _make_environment(folder: Path) -> Path:
    """An environment with nothing in it; returns its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "environment"], check=True)
    return folder / "environment" / "bin" / "python"


def _site_packages(python: Path) -> Path:
    return next(python.parents[1].glob("lib/python*/site-packages"))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
