"""A token's own bytes, also where it is a part of a character."""

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from worker.inference.sampling.token_bytes import make_token_bytes
from worker.models.files.description import load_tokenizer


@pytest.mark.parametrize("text", ["How do I cancel?", " naïve café", "👍🏽 ok", "日本語\n\x00"])
def test_bytes_of_the_tokens_are_the_bytes_of_the_text(models_folder, text):
    tokenizer = load_tokenizer(models_folder / "tiny-llama")
    token_bytes = make_token_bytes(tokenizer)

    token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    assert b"".join(map(token_bytes, token_ids)) == text.encode()


def test_special_tokens_are_their_own_text_and_unknown_ids_are_nothing(models_folder):
    tokenizer = load_tokenizer(models_folder / "tiny-llama")
    token_bytes = make_token_bytes(tokenizer)

    assert token_bytes(tokenizer.eos_token_id) == b"<|im_end|>"
    assert token_bytes(99_999) == b""


def test_sentencepiece_spells_bytes_and_spaces_differently():
    vocabulary = {"▁Hel": 0, "lo": 1, "<0xF0>": 2, "<0x9F>": 3, "é▁": 4, "<unk>": 5}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    token_bytes = make_token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend))

    assert [token_bytes(token_id) for token_id in range(5)] == [
        b" Hel",
        b"lo",
        b"\xf0",
        b"\x9f",
        "é ".encode(),
    ]
