"""The commands of docs/curl.md, run as they are printed, in bash and in zsh."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.box import running_box
from tests.tiny_model import make_tiny_model

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "curl.md").read_text()
PRINTED_MODEL = "SmolLM2-135M-Instruct"
SKIPPED = "<!-- not run by the test"
# A command that the API refuses ends the script, as -e does with one that fails.
CURLRC = "fail-with-body\nno-progress-meter\n"
OPTIONS = {"bash": ["-e", "-o", "pipefail"], "zsh": ["-f", "-e", "-o", "pipefail"]}


def blocks() -> list[str]:
    """The page's shell commands, without those that are marked as not run."""
    found = re.findall(r"(?m)^(.*)\n```sh\n((?:.*\n)*?)```", PAGE)
    return [commands for before, commands in found if not before.startswith(SKIPPED)]


def find_shell(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} IS NOT INSTALLED: docs/curl.md was not tried in it. CI installs it (.ci/run).")
    return path


@pytest.mark.parametrize("shell", OPTIONS)
def test_the_commands_are_read_by_the_shell(shell: str) -> None:
    ended = subprocess.run([find_shell(shell), "-n"], input="".join(blocks()), capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_no_command_needs_options_that_an_interactive_zsh_lacks() -> None:
    # It takes `#` for a word, and an unquoted `?` for a pattern that matches no file.
    for line in "".join(blocks()).splitlines():
        unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", "", line)
        assert not re.search(r"(^|\s)#|localhost\S*\?", unquoted), line


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("shell", OPTIONS)
def test_the_walk_ends_with_everything_it_promises(shell: str, tmp_path: Path) -> None:
    path = find_shell(shell)
    make_tiny_model(tmp_path / "made").rename(_folder(tmp_path / "models") / PRINTED_MODEL)
    work = _folder(tmp_path / "work")
    (work / "examples").symlink_to(ROOT / "examples")
    (work / ".curlrc").write_text(CURLRC)
    with running_box(tmp_path, tmp_path / "models", cancel_grace_seconds="10") as box:
        box.start_worker()
        script = "".join(blocks()).replace("localhost:8000", f"127.0.0.1:{box.port}")
        ended = subprocess.run(
            [path, *OPTIONS[shell]],
            input=script,
            cwd=work,
            env={**box.environment, "CURL_HOME": str(work)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr
        adapters = {adapter["name"] for adapter in box.client.get("/adapters").json()["data"]}
        assert "helper" in adapters
    assert (work / "helper-q8_0.gguf").read_bytes().startswith(b"GGUF")
    assert "<svg" in (work / "loss.svg").read_text()


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
