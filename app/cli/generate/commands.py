"""`tunesmith generate`: one question, one answer."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli import completions
from app.cli.connection.invocation import Json, client_of
from app.cli.failures import UsageProblem
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
from app.cli.names import find_target
from app.cli.output import clean, note, print_json

TargetName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Adapter (name or id), or base model.", autocompletion=completions.targets
    ),
]


def generate(
    context: typer.Context,
    model: TargetName,
    prompt: Annotated[
        str | None, typer.Argument(help="The question; `-` or nothing: standard input.", show_default=False)
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")
    ] = False,
    system: System = None,
    tools: Annotated[
        Path | None,
        typer.Option(
            help="File with the functions that the model may call: a JSON list.", show_default=False
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Stop = None,
    as_json: Json = False,
) -> None:
    """Ask an adapter or a base model once."""
    client = client_of(context)
    body: dict[str, Any] = sampling(max_new_tokens, temperature, top_p, seed=seed, stop=stop)
    if tools is not None:
        body["tools"] = _read_functions(tools)
    body |= _question(_text(prompt), raw=raw, system=system) | find_target(client, model)
    if as_json:
        return print_json(client.post("/generate", body))
    with stream_answer(client, body) as answer:
        write_pieces(answer)
    for _number, call in sorted(answer.calls.items()):
        sys.stdout.write(clean(f"{call.name} {call.arguments}\n"))
    if answer.end["finish_reason"] == "length":
        note(f"Cut at {max_new_tokens} tokens; --max-new-tokens allows more.", "dim")


def write_pieces(answer: StreamedAnswer) -> str:
    """Write the text of an answer to standard output as it arrives. Returns it."""
    text = ""
    for piece in answer.pieces:
        text += piece
        sys.stdout.write(clean(piece))
        sys.stdout.flush()
    if text or not answer.calls:
        sys.stdout.write("\n")
    return text


def _text(prompt: str | None) -> str:
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise UsageProblem("There is no question.", hint='For example `tunesmith generate helper "How …?"`.')
    return sys.stdin.read().rstrip("\n")


def _read_functions(path: Path) -> list[Any]:
    hint = 'It holds what requests have as `tools`: `[{"type": "function", "function": {"name": …}}]`.'
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageProblem(f"The functions of {path} can't be read: {reason}.", hint=hint) from None
    if not isinstance(found, list):
        raise UsageProblem(f"{path} is not a list of functions.", hint=hint)
    return found


def _question(text: str, *, raw: bool, system: str | None) -> dict[str, Any]:
    if raw:
        if system is not None:
            raise UsageProblem("--raw takes the text as it is: there is no place for --system in it.")
        return {"prompt": text}
    turns = [{"role": "system", "content": system}] if system else []
    return {"messages": [*turns, {"role": "user", "content": text}]}
