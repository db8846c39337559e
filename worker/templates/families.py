"""Tunesmith's chat templates by model family, for base models without one. Knows no tokenizer.

All have `{% generation %}` markers around the assistant's text, end of turn included.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

TEMPLATES = {
    path.stem: path.read_text().removesuffix("\n") for path in sorted(Path(__file__).parent.glob("*.jinja"))
}
PLAIN = TEMPLATES["plain"]
_SENTENCE_TOKENS = frozenset({"<s>", "</s>"})


@dataclass(frozen=True)
class TemplateFamily:
    """A template's name, the `model_type`s it is for (None: any), and the control tokens it uses."""

    name: str
    model_types: frozenset[str] | None
    tokens: frozenset[str]

    @property
    def template(self) -> str:
        """The template's text."""
        return TEMPLATES[self.name]


# The first match counts. Llama 2, Llama 3 and SmolLM share a model type and differ in their control tokens.
FAMILIES = (
    TemplateFamily(
        "llama3", frozenset({"llama"}), frozenset({"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"})
    ),
    TemplateFamily(
        "gemma3", frozenset({"gemma3", "gemma3_text"}), frozenset({"<start_of_turn>", "<end_of_turn>"})
    ),
    TemplateFamily("gemma", frozenset({"gemma", "gemma2"}), frozenset({"<start_of_turn>", "<end_of_turn>"})),
    TemplateFamily("phi3", frozenset({"phi3"}), frozenset({"<|user|>", "<|assistant|>", "<|end|>"})),
    TemplateFamily("chatml", None, frozenset({"<|im_start|>", "<|im_end|>"})),
    TemplateFamily("mistral_v3", frozenset({"mistral", "mixtral"}), _SENTENCE_TOKENS | {"[INST]", "[/INST]"}),
    TemplateFamily("mistral", frozenset({"mistral", "mixtral"}), _SENTENCE_TOKENS),
    TemplateFamily("llama2", frozenset({"llama"}), _SENTENCE_TOKENS),
)


_KNOWN = frozenset(TEMPLATES.values())


def is_known(template: str) -> bool:
    """Whether the template is one of Tunesmith's own."""
    return template in _KNOWN


def find_family(model_type: str | None, tokens: Collection[str]) -> TemplateFamily | None:
    """The family of a base model by its model type and its tokenizer's control tokens; None for unknown ones.

    A template needs its control tokens: otherwise the end of a turn would be several ordinary tokens.
    """
    for family in FAMILIES:
        if (family.model_types is None or model_type in family.model_types) and family.tokens <= set(tokens):
            return family
    return None
