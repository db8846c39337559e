import ast
import re
from pathlib import Path

import pytest
from typer.main import get_command

from app.cli.commands import cli
from app.cli.words import _COMMANDS, in_commands

ROOT = Path(__file__).parents[2]
# Only clients of the OpenAI API see messages about responses and evals.
CALL = re.compile(r"\b(GET|PUT|POST|DELETE) /(?!docs|v1/responses|v1/evals)")


def texts(folder: Path) -> list[str]:
    """Messages and hints in the code below a folder: strings and f-strings, `{id}` in place of values."""
    found = []
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text())
        described = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        fields = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _name(node) == "Field"]
        described |= {id(word.value) for node in fields for word in node.keywords}
        joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
        described |= {id(part) for node in joined for part in node.values}
        for node in ast.walk(tree):
            if id(node) in described:
                continue
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(
                        getattr(part, "value", "{}") if isinstance(part, ast.Constant) else "{id}"
                        for part in node.values
                    )
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def _part(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else "{id}"


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def messages() -> list[str]:
    """Every text of the API and the worker that names a call of HTTP or a choice of an upload."""
    folders = [ROOT / "app" / "core", ROOT / "app" / "api", ROOT / "worker"]
    found = [text for folder in folders for text in texts(folder)]
    named = [text for text in found if CALL.search(text) or "on_unused=" in text]
    assert len(named) > 20
    return named


def test_every_call_that_a_message_names_has_a_command() -> None:
    assert [text for text in messages() if CALL.search(in_commands(text))] == []


@pytest.mark.parametrize("command", sorted(set(_COMMANDS.values())))
def test_every_command_of_the_table_exists(command: str) -> None:
    found = get_command(cli)
    for word in command.replace(" {}", "").split():
        found = found.commands[word]  # type: ignore[attr-defined]


def test_calls_and_fields_become_commands_and_options() -> None:
    assert in_commands("POST /jobs/job_1/retry goes on.") == "`tunesmith jobs retry job_1` goes on."
    assert in_commands("GET /jobs lists them.") == "`tunesmith jobs list` lists them."
    assert in_commands("GET /jobs/{id} shows it.") == "`tunesmith jobs show JOB` shows it."
    assert in_commands("Or leave them out: on_problem=skip.") == "Or leave them out: --skip-problems."
