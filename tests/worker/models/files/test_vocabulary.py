"""Tokenizers that do not fit the embedding, and those without special tokens."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from app.core.errors import InvalidRequest
from app.core.errors.base_models import ModelUnreadable
from tests.tiny_model import NAME
from worker.models.files import vocabulary
from worker.models.files.description import count_embedding_rows, load_tokenizer


def make_tokenizer(*added: str, **special: str) -> PreTrainedTokenizerFast:
    """256 tokens for bytes, then the added ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def test_more_rows_than_tokens_are_usual() -> None:
    assert vocabulary.check_tokenizer(make_tokenizer("</s>", eos_token="</s>"), 320) == []


def test_an_added_token_without_a_row_is_named_and_refused_only_where_it_is_used() -> None:
    tokenizer = make_tokenizer("</s>", "<image>", eos_token="</s>")

    assert vocabulary.check_tokenizer(tokenizer, 257) == ["<image>"]
    vocabulary.check_ids(tokenizer("Hello")["input_ids"], tokenizer, 257)
    with pytest.raises(InvalidRequest, match=r"'<image>' \(number 257\).* embedding of 257 rows"):
        vocabulary.check_ids(tokenizer("Hello <image>")["input_ids"], tokenizer, 257)


@pytest.mark.parametrize(("added", "rows"), [(("</s>",), 200), (("<a>", "</s>"), 257)])
def test_a_tokenizer_of_another_model_is_refused_with_both_numbers(added: tuple[str, ...], rows: int) -> None:
    tokenizer = make_tokenizer(*added, eos_token="</s>")

    with pytest.raises(ModelUnreadable) as caught:
        vocabulary.check_tokenizer(tokenizer, rows)

    assert f"knows {256 + len(added)} tokens" in caught.value.message
    assert f"has {rows} rows" in caught.value.message
    assert "'</s>'" in caught.value.message


@pytest.mark.parametrize(
    ("tokenizer", "pad"),
    [
        (make_tokenizer("<unk>", "</s>", unk_token="<unk>", eos_token="</s>"), "<unk>"),
        (make_tokenizer("</s>", eos_token="</s>"), "</s>"),
        (make_tokenizer("<s>", bos_token="<s>"), "<s>"),
        (make_tokenizer("<p>", "</s>", pad_token="<p>", eos_token="</s>"), "<p>"),
        (make_tokenizer("</s>", "<p>", pad_token="<p>", eos_token="</s>"), "</s>"),  # <p> has no row
        (make_tokenizer(), None),
    ],
)
def test_padding_is_a_special_token_that_has_a_row(
    tokenizer: PreTrainedTokenizerBase, pad: str | None
) -> None:
    vocabulary.set_padding(tokenizer, 257 if "<p>" not in tokenizer.get_vocab() or pad == "</s>" else 258)

    assert tokenizer.pad_token == pad


def test_a_tokenizer_without_special_tokens_pads_with_any_and_loses_no_text() -> None:
    tokenizer = make_tokenizer()
    vocabulary.set_padding(tokenizer, 256)
    first = tokenizer.convert_ids_to_tokens(0)

    assert vocabulary.padding_id(tokenizer) == 0
    assert vocabulary.with_padding(tokenizer).pad_token_id == 0
    assert tokenizer.decode(tokenizer(first)["input_ids"], skip_special_tokens=True) == first


def test_the_rows_are_those_of_the_present_config(models_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / NAME
    shutil.copytree(models_folder / NAME, folder)
    assert count_embedding_rows(folder) == len(load_tokenizer(folder))

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 12_345}))

    assert count_embedding_rows(folder) == 12_345
    assert count_embedding_rows(tmp_path) is None
