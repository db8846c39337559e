"""Writes a Modelfile: which GGUF file, the chat template, stop words and parameters.

Source: https://github.com/ollama/ollama/blob/main/docs/modelfile.md
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from app.core.datasets.rows import Message
from worker.exports.ollama.template import Render, TemplateNotComposed, find_pieces
from worker.models.files.reading import read_json_object
from worker.templates.renderer import control_ends, render, template_of

MODELFILE = "Modelfile"
# Parameters of generation_config.json by Ollama's names.
_PARAMETERS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
_MAX_CONTEXT = 8192
_RAW = "{{ .Prompt }}"
_DAYS = (datetime(2001, 2, 3, tzinfo=UTC), datetime(2031, 5, 7, tzinfo=UTC))


@dataclass(frozen=True)
class OllamaTemplate:
    """A Go template, and what users of it should know."""

    text: str
    notes: list[str]


def find_template(tokenizer: PreTrainedTokenizerBase) -> OllamaTemplate:
    """The Go template that writes what the tokenizer's chat template writes.

    Where there is none, prompts are passed on as they are, and a note says so.
    """
    if template_of(tokenizer) is None:
        return OllamaTemplate(
            _RAW, ["Modelfile: there is no chat template; prompts are passed on unchanged."]
        )
    try:
        text = find_pieces(_renderer(tokenizer, None), _find_begin_token(tokenizer)).to_go()
        if '"""' in text:
            raise TemplateNotComposed('it has """, which no Modelfile can hold')
    except TemplateNotComposed as error:
        return OllamaTemplate(
            _RAW,
            [
                f"Modelfile: the chat template can't be written in Ollama's syntax: {error}. Prompts are "
                "passed on unchanged; render them with the chat template, or use llama-server, which has it."
            ],
        )
    notes = ["Modelfile: Ollama's template has no functions; llama-server uses the file's own chat template."]
    one, other = (_renderer(tokenizer, day)([Message("user", "a")], True) for day in _DAYS)
    if one != other:
        notes.append("Modelfile: the chat template prints the date; Ollama's has that of the export.")
    return OllamaTemplate(text, notes)


def write_modelfile(
    folder: Path,
    *,
    title: str,
    models: Sequence[str],
    adapter: str | None,
    template: OllamaTemplate,
    tokenizer: PreTrainedTokenizerBase,
    base: Path,
) -> None:
    """Write the Modelfile of the first of the GGUF files; the others are of the same model.

    `adapter` is a LoRA file for it.
    """
    model, *others = models
    lines = [
        f"# {title}, exported by Tunesmith:",
        f"#     ollama create {title.lower()} -f {MODELFILE}",
        *(f"# Another file of the same model: FROM ./{name}" for name in others),
        # A line end in a note would begin an instruction; notes may quote the chat template's own errors.
        *(f"# {' '.join(note.removeprefix('Modelfile: ').split())}" for note in template.notes),
        f"FROM ./{model}",
        *([f"ADAPTER ./{adapter}"] if adapter else []),
        f'TEMPLATE """{template.text}"""',
        *(f'PARAMETER stop "{end}"' for end in _find_stops(tokenizer)),
        *(f"PARAMETER {name} {value:g}" for name, value in _find_parameters(base).items()),
    ]
    (folder / MODELFILE).write_text("\n".join(lines) + "\n")


def _renderer(tokenizer: PreTrainedTokenizerBase, moment: datetime | None) -> Render:
    def render_messages(messages: Sequence[Message], is_prompt: bool) -> str:
        return render(tokenizer, messages, add_generation_prompt=is_prompt, moment=moment)

    return render_messages


def _find_begin_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The token that llama.cpp puts in front of every prompt, as the file's keys say."""
    ids = tokenizer("a").input_ids
    begin = tokenizer.bos_token_id
    return str(tokenizer.bos_token) if begin is not None and ids[0] == begin else None


def _find_stops(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The control tokens that end an answer. A Modelfile knows no escapes in quotes."""
    ends = dict.fromkeys(control_ends(tokenizer))
    return [end for end in ends if '"' not in end and end.isprintable()]


def _find_parameters(base: Path) -> dict[str, float]:
    """The base model's own parameters of sampling, and the context that is reserved."""
    path = base / "generation_config.json"
    given = read_json_object(path) if path.is_file() else {}
    found = {
        ours: float(given[theirs])
        for theirs, ours in _PARAMETERS.items()
        if isinstance(given.get(theirs), int | float) and given.get("do_sample") is not False
    }
    length = read_json_object(base / "config.json").get("max_position_embeddings")
    return found | ({"num_ctx": min(int(length), _MAX_CONTEXT)} if length else {})
