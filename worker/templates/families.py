"""Our own chat templates, by model family, for base models that come without one. Knows no tokenizer.

All carry `{% generation %}` markers around what the assistant writes, its end of turn included.
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
class Family:
    """A template, the `model_type`s it is for (None: any), and the control tokens it is made of."""

    name: str
    model_types: frozenset[str] | None
    tokens: frozenset[str]

    @property
    def template(self) -> str:
        """The template's text."""
        return TEMPLATES[self.name]


# The first that fits. Llama 2, Llama 3 and SmolLM are of one model type; their tokens tell them apart.
FAMILIES = (
    Family(
        "llama3", frozenset({"llama"}), frozenset({"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"})
    ),
    Family("gemma3", frozenset({"gemma3", "gemma3_text"}), frozenset({"<start_of_turn>", "<end_of_turn>"})),
    Family("gemma", frozenset({"gemma", "gemma2"}), frozenset({"<start_of_turn>", "<end_of_turn>"})),
    Family("phi3", frozenset({"phi3"}), frozenset({"<|user|>", "<|assistant|>", "<|end|>"})),
    Family("chatml", None, frozenset({"<|im_start|>", "<|im_end|>"})),
    Family("mistral_v3", frozenset({"mistral", "mixtral"}), _SENTENCE_TOKENS | {"[INST]", "[/INST]"}),
    Family("mistral", frozenset({"mistral", "mixtral"}), _SENTENCE_TOKENS),
    Family("llama2", frozenset({"llama"}), _SENTENCE_TOKENS),
)


def find_family(model_type: str | None, tokens: Collection[str]) -> Family | None:
    """The family of a base model whose tokenizer has these control tokens.

    Without its control tokens a family's template is no use: the end of a turn would be several ordinary
    tokens.
    """
    for family in FAMILIES:
        if (family.model_types is None or model_type in family.model_types) and family.tokens <= set(tokens):
            return family
    return None
