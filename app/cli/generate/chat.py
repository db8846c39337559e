"""`tunesmith chat`: a loop of questions and answers over one conversation."""

import contextlib
import sys
from collections.abc import Iterator

import typer

from app.cli.connection.client import Client
from app.cli.connection.invocation import Json, client_of
from app.cli.failures import CommandFailed, ExitCode
from app.cli.generate.answers import (
    MaxNewTokens,
    Seed,
    Stop,
    StreamedAnswer,
    System,
    Temperature,
    TopP,
    sampling,
    stream_answer,
)
from app.cli.generate.commands import TargetName, write_pieces
from app.cli.names import find_target
from app.cli.output import note, print_json_line, show_failure, write_thought

PROMPT = "Ask > "
_HELP = "/reset forgets the conversation; /exit or Ctrl-D leaves; Ctrl-C stops an answer."
_FATAL = (ExitCode.UNREACHABLE, ExitCode.UNAUTHORIZED, ExitCode.NOT_FOUND)


def chat(
    context: typer.Context,
    model: TargetName,
    system: System = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Stop = None,
    as_json: Json = False,
) -> None:
    """Talk to an adapter or a base model; it remembers what was said.

    Reads questions from a pipe too, a line each; --json answers with a line of JSON for each.
    """
    client = client_of(context)
    how = sampling(max_new_tokens, temperature, top_p, seed=seed, stop=stop)
    session = ChatSession(client, find_target(client, model) | how, system)
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives input() its editing and history
        note(f"Talking to {model}. {_HELP}", "dim")
    while (question := _read_question()) is not None:
        match question.strip():
            case "":
                continue
            case "/exit" | "/quit":
                return
            case "/reset":
                session.reset()
                note("Forgotten.", "dim")
            case "/help":
                note(_HELP, "dim")
            case command if command.startswith("/"):
                note(f"There is no {command.split()[0]}. {_HELP}", "yellow")
            case text:
                _ask(session, text, as_json=as_json)


class ChatSession:
    """The turns of a conversation with one adapter or base model."""

    def __init__(self, client: Client, settings: dict[str, object], system: str | None) -> None:
        self._client = client
        self._settings = settings
        self._system = [{"role": "system", "content": system}] if system else []
        self.turns: list[dict[str, str]] = []

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.turns = []

    def ask(self, question: str, *, as_json: bool) -> None:
        """Send a question and write the answer as it arrives. A part that was interrupted is a turn, too.

        Raises CommandFailed and KeyboardInterrupt; a question without any answer becomes no turn.
        """
        turns = [*self.turns, {"role": "user", "content": question}]
        pieces: list[str] = []
        thoughts: list[str] = []
        try:
            body = {**self._settings, "messages": [*self._system, *turns]}
            on_thought = thoughts.append if as_json else write_thought
            with stream_answer(self._client, body, on_thought=on_thought) as answer:
                recorded = StreamedAnswer(_record(answer, pieces), answer.end)
                if as_json:
                    text = "".join(recorded.pieces)
                    reasoning = {"reasoning": "".join(thoughts).rstrip()} if thoughts else {}
                    print_json_line({"text": text, **reasoning, **answer.end})
                else:
                    write_pieces(recorded)
        finally:
            if pieces:
                self.turns = [*turns, {"role": "assistant", "content": "".join(pieces)}]


def _record(answer: StreamedAnswer, pieces: list[str]) -> Iterator[str]:
    for piece in answer.pieces:
        pieces.append(piece)
        yield piece


def _ask(session: ChatSession, question: str, *, as_json: bool) -> None:
    try:
        session.ask(question, as_json=as_json)
    except KeyboardInterrupt:
        sys.stdout.write("\n")
        note("Stopped.", "dim")
    except CommandFailed as failure:
        if failure.exit_code in _FATAL or not sys.stdin.isatty():
            raise
        if failure.code == "context_length_exceeded":
            failure.hint = "The conversation has grown too long for the model: /reset forgets it."
        show_failure(failure, as_json=as_json)


def _read_question() -> str | None:
    """The next line of standard input, None at its end. Ctrl-C discards the line."""
    while True:
        try:
            if not sys.stdin.isatty():
                return sys.stdin.readline() or None
            return input(PROMPT)
        except EOFError:
            sys.stdout.write("\n")
            return None
        except KeyboardInterrupt:
            sys.stdout.write("\n")
