"""A tokenizer as GGUF keys: tokens, their types, merges or scores, special tokens, chat template.

Two of llama.cpp's tokenizer models are supported: `gpt2` (byte-level BPE after a pre-tokenizer that llama.cpp
knows by name) and `llama` (SentencePiece BPE, which joins the pieces of the highest score). A pre-tokenizer
that llama.cpp has no name for is refused: text would be split differently than in training.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from app.core.errors.exports import TokenizerUnfit

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# llama.cpp's pre-tokenizer names, by the tokenizer's steps before its merges.
_PATTERNS = {
    (_GPT4 % "{1,3}",): "llama-bpe",
    (_GPT4 % "",): "qwen2",
    (_TEKKEN,): "tekken",
    ("<gpt2>",): "gpt-2",
    ("<digits>", "<gpt2>"): "smollm",
}
_SPACE = "\u2581"


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's entries in a GGUF file."""

    model: str
    pre: str
    tokens: list[str]
    kinds: list[TokenType]
    merges: list[str]
    scores: list[float]
    adds_space_prefix: bool

    def write(self, writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the tokenizer's keys."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.adds_space_prefix)
        for number, add in (
            (tokenizer.bos_token_id, writer.add_bos_token_id),
            (tokenizer.eos_token_id, writer.add_eos_token_id),
            (tokenizer.unk_token_id, writer.add_unk_token_id),
            (tokenizer.pad_token_id, writer.add_pad_token_id),
        ):
            # A tokenizer may name a token that the model's embedding has no row for; no text uses it.
            if number is not None and number < len(self.tokens):
                add(number)
        ids = tokenizer("a").input_ids
        writer.add_add_bos_token(tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id)
        writer.add_add_eos_token(len(ids) > 1 and ids[-1] == tokenizer.eos_token_id)
        if isinstance(tokenizer.chat_template, str):
            writer.add_chat_template(tokenizer.chat_template)


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """The vocabulary of a model whose embedding has `rows` rows. Raises TokenizerUnfit."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    settings: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {}
    model = settings.get("model", {})
    if model.get("type") != "BPE":
        raise _refuse(f"it is a {model.get('type') or 'slow'} tokenizer, not BPE")
    tokens, kinds = _list_tokens(tokenizer, settings, rows)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    pieces = [
        tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]
    ]
    steps = _find_steps(settings)
    if "ByteLevel" in steps:
        return Vocabulary("gpt2", _find_pattern(settings), tokens, kinds, merges, [], False)
    if not model.get("byte_fallback"):
        raise _refuse("it is neither byte-level nor does it fall back to bytes")
    scores = _score(tokens, ["".join(pair) for pair in pieces])
    return Vocabulary("llama", "default", tokens, kinds, [], scores, _adds_space(tokenizer))


def _list_tokens(
    tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any], rows: int
) -> tuple[list[str], list[TokenType]]:
    """The token and its type for every row of the embedding."""
    special = {entry["id"]: entry["special"] for entry in settings.get("added_tokens", [])}
    named = {number: token for token, number in tokenizer.get_vocab().items()}
    tokens = [named.get(number, f"[PAD{number}]") for number in range(rows)]
    return tokens, [
        _kind(tokens[n], n in named, special.get(n), tokenizer.unk_token == tokens[n]) for n in range(rows)
    ]


def _kind(token: str, is_known: bool, special: bool | None, is_unknown_token: bool) -> TokenType:
    if not is_known:
        return TokenType.UNUSED
    if is_unknown_token and special:
        return TokenType.UNKNOWN if token == "<unk>" else TokenType.CONTROL
    if special is not None:
        return TokenType.CONTROL if special else TokenType.USER_DEFINED
    return TokenType.BYTE if _BYTE_TOKEN.fullmatch(token) else TokenType.NORMAL


def _score(tokens: list[str], merged: list[str]) -> list[float]:
    """SentencePiece scores: the earlier a piece is merged, the higher; unmerged pieces have the lowest."""
    order = {piece: place for place, piece in reversed(list(enumerate(merged)))}
    return [-float(order.get(token, len(merged))) for token in tokens]


def _find_steps(settings: dict[str, Any]) -> list[str]:
    return [step["type"] for step in _flatten(settings.get("pre_tokenizer"), "pretokenizers")]


def _flatten(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    return (
        [inner for one in step[key] for inner in _flatten(one, key)] if step["type"] == "Sequence" else [step]
    )


def _find_pattern(settings: dict[str, Any]) -> str:
    """llama.cpp's name of the tokenizer's pre-tokenizer. Raises TokenizerUnfit."""
    seen: list[str] = []
    for step in _flatten(settings["pre_tokenizer"], "pretokenizers"):
        match step:
            case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
                seen.append(pattern)
            case {"type": "Digits", "individual_digits": True}:
                seen.append("<digits>")
            case {"type": "ByteLevel", "use_regex": False}:
                pass
            case {"type": "ByteLevel"}:
                seen.append("<gpt2>")
            case _:
                seen.append(f"<{step['type']}>")
    name = _PATTERNS.get(tuple(seen))
    if name is None:
        raise _refuse(f"llama.cpp has no name for how it splits text ({', '.join(seen) or 'not at all'})")
    return name


def _adds_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    tokens: list[str] = tokenizer.tokenize("a")
    return tokens[0].startswith(_SPACE)


def _refuse(reason: str) -> TokenizerUnfit:
    return TokenizerUnfit(
        f"The tokenizer can't be written as GGUF: {reason}.", hint='The format "merged" takes any tokenizer.'
    )
