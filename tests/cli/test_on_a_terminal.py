import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.orm import Session

from app.core.engine.messages import TokenDelta
from app.core.jobs import events, records as job_records
from app.core.jobs.events import Metrics
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.cli.terminal import CTRL_C, CTRL_D, Terminal
from tests.factories import make_adapter, make_dataset, make_job
from tests.fakes import FINISHED, Act, FakeEngine, ServerThread

Open = Callable[..., Terminal]


@pytest.fixture
def open_terminal(api: ServerThread, own_configuration: Path) -> Iterator[Open]:
    opened: list[Terminal] = []

    def open_terminal(*arguments: str, columns: int = 80) -> Terminal:
        environment = {"TUNESMITH_URL": api.url, "XDG_CONFIG_HOME": str(own_configuration)}
        opened.append(Terminal(list(arguments), environment, columns=columns))
        return opened[-1]

    yield open_terminal
    for terminal in opened:
        terminal.close()


@pytest.fixture
def job_id(database: Database) -> str:
    """A job at step 3 of 10."""
    with database.transaction() as session:
        job_id = make_job(session, name="helper").id
        steps = [
            Metrics(step=step, total_steps=10, epoch=step / 10, loss=2.5 - step / 2, tokens_per_second=1234)
            for step in (1, 2, 3)
        ]
        events.append(session, job_id, steps)
    return job_id


@pytest.fixture
def chat(open_terminal: Open, engine: FakeEngine, database: Database) -> Terminal:
    with database.transaction() as session:
        make_adapter(session)
    engine.register(database)
    terminal = open_terminal("chat", "helper")
    terminal.wait_for("Ask > ")
    return terminal


def test_a_followed_job_has_a_bar_a_curve_and_its_speed(
    open_terminal: Open, job_id: str, database: Database
) -> None:
    terminal = open_terminal("jobs", "follow", job_id)
    terminal.wait_for(r"━+ +3/10  30%\n *loss 1\.0000 █▅▁  epoch 0\.30  1,234 tok/s")
    with database.transaction() as session:
        job_records.request_cancel(session, job_id)
    assert terminal.wait() == 1
    assert "helper cancelled" in terminal.text
    assert max(map(len, terminal.text.splitlines())) <= 80


@pytest.mark.parametrize("columns", [60, 80])
def test_help_cuts_no_name_of_an_option(columns: int) -> None:
    script = (
        "import typer\n"
        "from typer.testing import CliRunner\n"
        "from app.cli.commands import cli\n"
        "def show(command, path):\n"
        "    print(CliRunner().invoke(cli, [*path, '--help']).output)\n"
        "    for name, one in getattr(command, 'commands', {}).items():\n"
        "        if name not in ('keys', 'backup', 'restore'):\n"  # whose help is another process's
        "            show(one, [*path, name])\n"
        "show(typer.main.get_command(cli), [])\n"
    )
    environment = {**os.environ, "COLUMNS": str(columns), "TERMINAL_WIDTH": str(columns)}
    ended = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for option in ("--no-load-in-4bit", "--assistant-only-loss", "--max-new-tokens", "--skip-problems"):
        assert option in ended.stdout
    assert [line for line in ended.stdout.splitlines() if re.search(r"--[\w-]*…", line)] == []


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize("kind", ["jobs", "datasets", "adapters"])
def test_a_list_cuts_no_id_and_no_name(
    open_terminal: Open, database: Database, settings: Settings, tmp_path: Path, kind: str, columns: int
) -> None:
    name = "a-name-of-sixty-four-characters-as-long-as-a-job-or-file-may-get"
    store = ArtifactStore(settings.artifacts_url)
    with database.transaction() as session:
        make: Callable[[Session], Any] = {
            "jobs": make_job,
            "datasets": lambda session: make_dataset(session, store, tmp_path),
            "adapters": make_adapter,
        }[kind]
        made = make(session)
        made.name, made_id = name, made.id
    terminal = open_terminal(kind, "list", columns=columns)
    assert terminal.wait() == 0
    lines = terminal.text.splitlines()
    assert max(map(len, lines)) <= columns
    assert made_id in terminal.text
    # A folded name stands under its heading, in pieces.
    place = lines[0].index("NAME")
    assert name in "".join(line[place:].split()[0] for line in lines[1:] if line[place:].split())


@pytest.mark.parametrize("columns", [60, 80])
def test_the_id_of_a_paused_job_is_whole_while_it_is_followed(
    open_terminal: Open, database: Database, columns: int
) -> None:
    with database.transaction() as session:
        job_id = make_job(session, name="a-long-name-" * 5).id
        job_records.request_pause(session, job_id)
    terminal = open_terminal("jobs", "follow", job_id, columns=columns)
    terminal.wait_for(f"tunesmith jobs resume {job_id}|resume\\s+{job_id}")


def test_ctrl_c_leaves_the_job_alone_and_says_how_to_come_back(
    open_terminal: Open, job_id: str, database: Database
) -> None:
    terminal = open_terminal("jobs", "follow", "helper")
    terminal.wait_for("3/10")
    terminal.type(CTRL_C)
    assert terminal.wait() == 130
    assert f"The job goes on. `tunesmith jobs follow {job_id}` comes back to it" in terminal.text
    assert "Traceback" not in terminal.text
    with database.snapshot() as session:
        assert job_records.get(session, job_id).cancel_requested_at is None


def test_a_pipe_gets_lines_without_control_codes(api: ServerThread, job_id: str, database: Database) -> None:
    with database.transaction() as session:
        job_records.request_cancel(session, job_id)
    ended = subprocess.run(
        [sys.executable, "-m", "app.cli", "--url", api.url, "jobs", "follow", job_id],
        env={**os.environ, "TERM": "xterm-256color"},
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 1
    assert b"step  3/10" in ended.stdout
    assert b"\x1b" not in ended.stdout + ended.stderr


def test_ctrl_c_stops_an_answer_and_its_part_stays_in_the_conversation(
    chat: Terminal, engine: FakeEngine
) -> None:
    engine.scripts = [[TokenDelta(text="Once upon"), Act.HOLD], [TokenDelta(text="Goodbye."), FINISHED]]
    chat.type("Tell me.\n")
    chat.wait_for("Once upon")
    chat.type(CTRL_C)
    assert engine.lost_its_client.wait(20)
    chat.wait_for(r"Stopped\.\nAsk > ")
    chat.type("And then?\n")
    chat.wait_for(r"Goodbye\.\nAsk > ")
    said = [turn.content for turn in engine.requests[1].messages or []]
    assert said == ["Tell me.", "Once upon", "And then?"]


def test_ctrl_c_at_the_prompt_throws_the_line_away_and_ctrl_d_leaves(
    chat: Terminal, engine: FakeEngine
) -> None:
    chat.type("Never mind")
    chat.wait_for("Never mind")
    chat.interrupt_prompt(r"Never mind\S*\nAsk > ")
    chat.type(CTRL_D)
    assert chat.wait() == 0
    assert engine.requests == []


def test_deleting_asks_first(open_terminal: Open, database: Database) -> None:
    with database.transaction() as session:
        make_adapter(session)
    terminal = open_terminal("adapters", "rm", "helper")
    terminal.wait_for(r"Delete adapter helper for good\? \[y/N\]")
    terminal.type("n\n")
    assert terminal.wait() == 1
    assert "Nothing was deleted" in terminal.text


@pytest.mark.parametrize("answer", ["y", "n"])
def test_a_file_with_other_columns_is_shown_and_added_after_a_question(
    open_terminal: Open, api: ServerThread, tmp_path: Path, answer: str
) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "Who?", "reply": "Me", "picture": "me.png"}\n')
    terminal = open_terminal("datasets", "add", str(path))
    terminal.wait_for("Add it as shown without picture")
    assert re.search("picture +not used", terminal.text)
    assert "  assistant: Me\n" in terminal.text
    terminal.type(f"{answer}\n")
    assert terminal.wait() == (0 if answer == "y" else 1)
    with httpx.Client(base_url=api.url) as client:
        datasets = client.get("/datasets").json()["data"]
    assert [dataset["format"] for dataset in datasets] == (["instruction"] if answer == "y" else [])


def test_enter_adds_a_file_of_which_nothing_is_lost(open_terminal: Open, tmp_path: Path) -> None:
    path = tmp_path / "faq.csv"
    path.write_text("question,answer\nWho?,Me\n")
    terminal = open_terminal("datasets", "add", str(path))
    terminal.wait_for(r"Add it as shown\? \[Y/n\]")
    terminal.type("\n")
    assert terminal.wait() == 0
    assert "instruction" in terminal.text.rpartition("Add it")[2]
