"""The text of each token of a row; concatenated, the texts are the row's text. Knows no model."""

from collections.abc import Sequence
from typing import cast

from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\ufffd"


def token_texts(tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int]) -> list[str]:
    """The text of each token. Of several tokens of one character, the last has the text; the others have "".

    Each token is decoded together with those before it: some tokenizers drop a single token's leading space.
    """
    texts = []
    before, begin = 0, 0
    for end in range(1, len(input_ids) + 1):
        known = _decode(tokenizer, input_ids[before:begin])
        text = _decode(tokenizer, input_ids[before:end])
        if text.endswith(_UNFINISHED) and end < len(input_ids):
            texts.append("")
            continue
        texts.append(text[len(known) :])
        before, begin = begin, end
    return texts


def _decode(tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(input_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return cast(str, text)
