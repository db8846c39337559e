"""Encodes a text after a prompt so that its tokens begin with those of the prompt alone, as in serving.

Text may be tokenized otherwise at the border when more text follows: two newlines in one token, say. The rest
is encoded apart then. SentencePiece's tokenizers put a space before whatever they encode, which must not
come between: decoded, the tokens are the prompt and the rest.
"""

from collections.abc import Sequence
from typing import cast

from transformers import PreTrainedTokenizerBase

from app.core.errors import InvalidRequest
from worker.templates.renderer import encode, encode_plain, encode_rendered
from worker.templates.rendering.process import Span

# Put before the rest of a text, whose tokens are those that follow the anchor's. transformers' chat utilities
# encode pieces of a chat after a newline; where that merges with the rest, others may not.
_ANCHORS = ("", "\n", ".", "a", "0")
_CONTEXT = 8  # tokens of the prompt that are decoded with the rest: characters have at most four


def encode_completion(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str
) -> tuple[list[int], list[int]]:
    """The token ids of a prompt that no template rendered, and those of the text after it."""
    prompt_ids = encode_plain(tokenizer, prompt)
    whole_ids = encode_plain(tokenizer, prompt + completion)
    if whole_ids[: len(prompt_ids)] == prompt_ids:
        return prompt_ids, whole_ids[len(prompt_ids) :]
    return prompt_ids, _encode_after(tokenizer, _find_anchor(tokenizer, prompt_ids, completion), completion)


def encode_with_border(tokenizer: PreTrainedTokenizerBase, text: str, border: int) -> list[int]:
    """The token ids of rendered text whose prompt ends at the border."""
    whole_ids = encode_rendered(tokenizer, text)
    prompt_ids = encode_rendered(tokenizer, text[:border])
    if whole_ids[: len(prompt_ids)] == prompt_ids:
        return whole_ids
    rest = text[border:]
    return prompt_ids + _encode_after(tokenizer, _find_anchor(tokenizer, prompt_ids, rest), rest)


def encode_with_spans(
    tokenizer: PreTrainedTokenizerBase, text: str, border: int
) -> tuple[list[int], list[Span]]:
    """The token ids of `encode_with_border`, and the span of characters of each token.

    Raises InvalidRequest where the tokenizer does not know the spans.
    """
    if not tokenizer.is_fast:
        raise InvalidRequest(
            "the model's tokenizer does not say where tokens stand in the text, so turns can't be masked.",
            hint="Set training.assistant_only_loss to false and leave out message weights.",
        )
    whole_ids, whole_spans = _encode_piece(tokenizer, text)
    prompt_ids = encode_rendered(tokenizer, text[:border])
    if whole_ids[: len(prompt_ids)] == prompt_ids:
        return whole_ids, whole_spans
    anchor = _find_anchor(tokenizer, prompt_ids, text[border:])
    skipped = len(encode_rendered(tokenizer, anchor))
    rest_ids, rest_spans = _encode_piece(tokenizer, anchor + text[border:])
    shift = border - len(anchor)
    moved = [(max(start + shift, border), end + shift) for start, end in rest_spans[skipped:]]
    return prompt_ids + rest_ids[skipped:], _encode_piece(tokenizer, text[:border])[1] + moved


def _find_anchor(tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], rest: str) -> str:
    """The anchor after which the rest's tokens continue the prompt's text; the empty one where none does."""
    return next((anchor for anchor in _ANCHORS if _continues(tokenizer, prompt_ids, anchor, rest)), "")


def _continues(tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], anchor: str, rest: str) -> bool:
    anchor_ids = encode_rendered(tokenizer, anchor) if anchor else []
    if encode_rendered(tokenizer, anchor + rest)[: len(anchor_ids)] != anchor_ids:
        return False
    context = list(prompt_ids[-_CONTEXT:])
    continued = _decode(tokenizer, context + _encode_after(tokenizer, anchor, rest))
    return continued == _decode(tokenizer, context) + rest


def _encode_after(tokenizer: PreTrainedTokenizerBase, anchor: str, rest: str) -> list[int]:
    skipped = len(encode_rendered(tokenizer, anchor)) if anchor else 0
    return encode_rendered(tokenizer, anchor + rest)[skipped:]


def _decode(tokenizer: PreTrainedTokenizerBase, input_ids: list[int]) -> str:
    text = tokenizer.decode(input_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return cast(str, text)


def _encode_piece(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[Span]]:
    encoded = encode(tokenizer, text, add_special_tokens=False, with_offsets=True)
    token_spans: list[Span] = []
    span = (0, 0)
    for _start, end in encoded.offsets:
        # Offsets may leave out a token's leading space, and the tokens of one character share that character.
        if end > span[1]:
            span = (span[1], end)
        token_spans.append(span)
    return encoded.input_ids, token_spans
