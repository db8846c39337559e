"""What a model answered, as graders read it. Pure."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GradedSample:
    """One answer of a model: its text, and the calls of functions in OpenAI's form."""

    text: str
    tool_calls: tuple[dict[str, Any], ...] = ()
    finish_reason: str = "stop"

    @property
    def parsed(self) -> Any:
        """The text read as JSON, or None where it is none."""
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError):
            return None

    def as_namespace(self) -> dict[str, Any]:
        """The variables of `sample` in templates and Python graders, by OpenAI's names.

        `output_json` is there only where the text is a JSON object or list.
        """
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.tool_calls:
            message["tool_calls"] = list(self.tool_calls)
        namespace = {
            "output_text": self.text,
            "output_tools": list(self.tool_calls),
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish_reason}],
        }
        parsed = self.parsed
        return namespace | {"output_json": parsed} if isinstance(parsed, dict | list) else namespace


def tool_call(name: str, arguments: str, call_id: str = "") -> dict[str, Any]:
    """Returns a call in OpenAI's form; `arguments` is JSON."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
