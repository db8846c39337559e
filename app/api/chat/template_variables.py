"""Variables of the chat template that a request sets, such as whether the model thinks first."""

from typing import Any, Literal

from pydantic import Field, field_validator

from app.api.chat.request_parts import RequestPart
from app.core.chat.json_limits import check_levels

# What the renderer sets itself, and the options of transformers' `apply_chat_template`.
_RESERVED = frozenset(
    {
        *("messages", "conversation", "tools", "documents", "chat_template", "template_kwargs"),
        *("add_generation_prompt", "continue_final_message", "return_assistant_tokens_mask"),
        *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
        *("tokenizer_kwargs", "processor_kwargs", "strftime_now", "raise_exception", "self"),
    }
)
# What templates call the switch that leaves out thoughts.
_SWITCHES = ("enable_thinking", "thinking")
_MAX_VARIABLES = 64

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class TemplateFields(RequestPart):
    """The fields of a request that set variables of the chat template."""

    chat_template_kwargs: dict[str, Any] | None = Field(
        None,
        max_length=_MAX_VARIABLES,
        description='Not OpenAI\'s. Variables of the chat template, such as `{"enable_thinking": false}`.',
    )
    reasoning_effort: ReasoningEffort | None = Field(
        None,
        description="The template's variable of this name, where it has one; `none`: the model does not "
        "think first, where its template can say so.",
    )

    @field_validator("chat_template_kwargs")
    @classmethod
    def _check_names(cls, variables: dict[str, Any] | None) -> dict[str, Any] | None:
        check_levels(variables)
        for name in variables or {}:
            if name in _RESERVED or name.endswith("_token") or not name.isidentifier():
                raise ValueError(f"{name!r} can't be set: only other variables of the template can")
        return variables

    def find_variables(self) -> dict[str, Any]:
        """The variables of the chat template."""
        return template_variables(self.reasoning_effort) | (self.chat_template_kwargs or {})


def template_variables(effort: ReasoningEffort | None) -> dict[str, Any]:
    """The variables of the chat template that say how much the model is to think."""
    if effort == "none":
        return dict.fromkeys(_SWITCHES, False)
    return {} if effort is None else {"reasoning_effort": effort}
