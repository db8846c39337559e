"""JSON objects of requests as clients of other services send them, and fields that must be empty.

As in OpenAI's API, null means a field's default.
"""

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator


def allow_only(*neutral: object) -> AfterValidator:
    """A validator that accepts null and these values alone: others have no effect here and are rejected."""

    def check(value: object) -> object:
        if value is not None and value not in neutral:
            raise ValueError("not supported here; leave it out")
        return value

    return AfterValidator(check)


MustBeNull = Annotated[Any, allow_only()]
MustBeEmpty = Annotated[Any, allow_only([])]


# Anthropic's and OpenRouter's mark of what a prompt cache should hold, on messages, parts, tools and calls.
_IGNORED_EVERYWHERE = frozenset({"cache_control"})


class RequestPart(BaseModel):
    """A JSON object of a request. Unknown fields are refused, except `cache_control` and those that are null.

    `ignored_fields`: fields of other vendors that clients leave in a history, and that change nothing here.
    """

    model_config = ConfigDict(extra="forbid")
    ignored_fields: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _drop_ignored(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        known = {field.alias or name for name, field in cls.model_fields.items()}
        ignored = cls.ignored_fields | _IGNORED_EVERYWHERE
        return {
            name: value
            for name, value in content.items()
            if name in known or (value is not None and name not in ignored)
        }
