"""Graders of the command line: ready ones by their name, others from JSON files."""

import json
import sys
from pathlib import Path
from typing import Any

from app.cli.failures import UsageProblem

_EXACT = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_text}}",
    "reference": "{{item.reference}}",
    "operation": "eq",
}
_SIMILAR = {
    "type": "text_similarity",
    "input": "{{sample.output_text}}",
    "reference": "{{item.reference}}",
}
# Graders that need no more than their name.
READY_GRADERS: dict[str, dict[str, Any]] = {
    "exact": _EXACT,
    "contains": _EXACT | {"name": "contains", "operation": "ilike"},
    **{
        name: _SIMILAR | {"name": name, "evaluation_metric": name}
        for name in ("fuzzy_match", "bleu", "rouge_l")
    },
    "tool_call": {"type": "tool_call", "name": "tool_call", "reference": "{{item.tool_calls}}"},
    "perplexity": {"type": "perplexity", "name": "perplexity", "reference": "{{item.reference}}"},
}


def find_graders(text: str) -> list[dict[str, Any]]:
    """The graders that a name or a file stands for. Raises UsageProblem."""
    if text in READY_GRADERS:
        return [READY_GRADERS[text]]
    path = Path(text)
    if not path.is_file():
        raise UsageProblem(
            f"There is no grader {text!r}, and no such file.",
            hint=f"Ready ones are: {', '.join(READY_GRADERS)}.",
        )
    found = read_json(path, dict | list)
    return found if isinstance(found, list) else [found]


def read_json(path: Path, kind: Any) -> Any:
    """The content of a JSON file, of this kind; `-` is standard input. Raises UsageProblem."""
    try:
        content = json.loads(sys.stdin.read() if str(path) == "-" else path.read_text())
    except OSError as error:
        raise UsageProblem(f"{path} can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise UsageProblem(f"{path} is not JSON: {error}") from error
    if not isinstance(content, kind):
        raise UsageProblem(f"{path} is no JSON object.")
    return content
