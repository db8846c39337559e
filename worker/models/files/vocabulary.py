"""Whether a tokenizer fits a base model's embedding: every token that is used must have a row there.

More rows than tokens are usual (embeddings are padded). Some models have added tokens without a row, which
text alone never needs: Gemma 3 1B knows the mark of an image, for one. Such a tokenizer is used, and each
text with such a token is refused.
"""

import copy
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from app.core.errors import InvalidRequest
from app.core.errors.base_models import ModelUnreadable

_TOKENS_SHOWN = 5


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int) -> list[str]:
    """The added tokens that have no row in an embedding of so many.

    Raises ModelUnreadable where a token has none that is not an added one, or the end token has none.
    """
    if _count_ids(tokenizer) <= rows:
        return []
    added = tokenizer.added_tokens_decoder
    beyond = {number: token for token, number in tokenizer.get_vocab().items() if number >= rows}
    if beyond.keys() - added.keys() or tokenizer.eos_token_id in beyond:
        raise ModelUnreadable(
            f"The tokenizer knows {_count_ids(tokenizer):,} tokens, and the base model's embedding has "
            f"{rows:,} rows: it has none for {_name(beyond.values())}.",
            hint="Put the tokenizer that belongs to the model into its folder, or resize the embedding with "
            "transformers (model.resize_token_embeddings(len(tokenizer))) and save the model again.",
        )
    return [beyond[number] for number in sorted(beyond)]


def check_ids(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Raise InvalidRequest for a token that has no row in an embedding of so many."""
    unknown = max(token_ids, default=0)
    if unknown >= rows:
        raise InvalidRequest(
            f"The text has the token {tokenizer.convert_ids_to_tokens(unknown)!r} (number {unknown:,}), for "
            f"which the base model's embedding of {rows:,} rows has none.",
            hint="The tokenizer knows it and the model does not: leave the token out of the text.",
        )


def set_padding(tokenizer: PreTrainedTokenizerBase, rows: int | None) -> None:
    """Give a tokenizer a pad token that has a row, where one of its special tokens can be it.

    Padding is masked by position, never by number, so an end token stays one to learn. A tokenizer without
    special tokens stays without a pad token, since a pad token is left out of what is decoded.
    """
    pad = tokenizer.pad_token_id
    if pad is not None and (rows is None or pad < rows):
        return
    candidates = [
        tokenizer.unk_token_id,
        tokenizer.eos_token_id,
        tokenizer.bos_token_id,
        *tokenizer.all_special_ids,
    ]
    usable = [one for one in candidates if one is not None and (rows is None or one < rows)]
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(usable[0]) if usable else None


def with_padding(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, or a copy with a pad token where it has none: libraries ask for one."""
    if tokenizer.pad_token_id is not None:
        return tokenizer
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = tokenizer.convert_ids_to_tokens(padding_id(tokenizer))
    return padded


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The number that fills rows up: the pad token's, or any where there is none."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def _count_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest number of a token; there may be gaps below it."""
    added = max(tokenizer.added_tokens_decoder, default=-1)
    return max(len(tokenizer), added + 1)


def _name(tokens: Iterable[str]) -> str:
    ordered = sorted(tokens)
    more = f" and {len(ordered) - _TOKENS_SHOWN:,} more" if len(ordered) > _TOKENS_SHOWN else ""
    return ", ".join(map(repr, ordered[:_TOKENS_SHOWN])) + more
