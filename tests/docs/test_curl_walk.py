"""The curl commands of the README and of docs/, run as they are printed, in bash and in zsh."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.box import running_box
from tests.servers.webhook_receiver import WebhookReceiver
from tests.tiny_model import make_tiny_model

ROOT = Path(__file__).parents[2]
WALK = ROOT / "docs" / "curl.md"
# The others go on from where the walk ends, in one shell.
PAGES = [WALK, ROOT / "README.md", *sorted(set((ROOT / "docs").glob("*.md")) - {WALK})]
RECEIVER = "https://example.org/hooks"
PRINTED_MODEL = "SmolLM2-135M-Instruct"
SKIPPED = "<!-- not run by the test"
# A command that the API refuses ends the script, as -e does with one that fails.
CURLRC = "fail-with-body\nno-progress-meter\n"
OPTIONS = {"bash": ["-e", "-o", "pipefail"], "zsh": ["-f", "-e", "-o", "pipefail"]}


def blocks() -> list[str]:
    """The walk's shell commands, and those of other pages with curl, but none marked as not run."""
    return [commands for page in PAGES for commands in blocks_of(page)]


def blocks_of(page: Path) -> list[str]:
    found = re.findall(r"(?m)^(.*)\n```sh\n((?:.*\n)*?)```", page.read_text())
    commands = [commands for before, commands in found if not before.startswith(SKIPPED)]
    if page == WALK:
        return commands
    return [without_docker(block) for block in commands if re.search(r"\bcurl ", block)]


def make_script() -> str:
    """All of them; each page in a folder of its own, where no page before has left the same file."""
    parts = [(page, "".join(blocks_of(page))) for page in PAGES]
    return "".join(f"mkdir -p {page.stem}-page; cd {page.stem}-page\n{text}" for page, text in parts if text)


def without_docker(block: str) -> str:
    """The block without the lines that start the service in containers: it runs already."""
    return "".join(line for line in block.splitlines(keepends=True) if not line.startswith("docker "))


def find_shell(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} IS NOT INSTALLED: no curl command was tried in it. CI installs it (.ci/run).")
    return path


@pytest.mark.parametrize("shell", OPTIONS)
def test_the_commands_are_read_by_the_shell(shell: str) -> None:
    ended = subprocess.run([find_shell(shell), "-n"], input="".join(blocks()), capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_every_page_with_a_curl_command_is_run() -> None:
    pages = [page.name for page in PAGES if blocks_of(page)]
    assert pages == ["curl.md", "README.md", "evaluations.md", "exports.md", "webhooks.md"]
    inline = [text for page in PAGES for text in re.findall(r"(?<!`)`(curl [^`\n]*)`", page.read_text())]
    assert [text for text in inline if "$" in text] == []


def test_no_command_needs_options_that_an_interactive_zsh_lacks() -> None:
    # It takes `#` for a word, and an unquoted `?` for a pattern that matches no file.
    for line in "".join(blocks()).splitlines():
        unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", "", line)
        assert not re.search(r"(^|\s)#|localhost\S*\?", unquoted), line


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    receiver = WebhookReceiver()
    yield receiver
    receiver.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("shell", OPTIONS)
def test_the_walk_ends_with_everything_it_promises(
    shell: str, tmp_path: Path, receiver: WebhookReceiver
) -> None:
    path = find_shell(shell)
    make_tiny_model(tmp_path / "made").rename(_folder(tmp_path / "models") / PRINTED_MODEL)
    work = _folder(tmp_path / "work")
    _folder(work / "curl-page")
    (work / "curl-page" / "examples").symlink_to(ROOT / "examples")
    (work / ".curlrc").write_text(CURLRC)
    settings = {"cancel_grace_seconds": "10", "webhook_allow_private": "true"}
    with running_box(tmp_path, tmp_path / "models", **settings) as box:
        box.start_worker()
        script = make_script().replace("localhost:8000", f"127.0.0.1:{box.port}")
        script = script.replace(RECEIVER, receiver.url)
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
    assert receiver.take()
    walk = work / "curl-page"
    assert (walk / "helper-q8_0.gguf").read_bytes().startswith(b"GGUF")
    assert "<svg" in (walk / "loss.svg").read_text()


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
