"""The benchmark of encoding rows."""

from pathlib import Path

from transformers import AutoTokenizer

from benchmarks.row_encoding import measure
from tests.tiny_model import make_tiny_model


def test_rows_are_encoded_in_one_process_and_in_several(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(tmp_path))

    found = measure(tokenizer, 20, assistant_only=True)

    assert found["rows"] == 20
    assert found["tokens_per_row"] > 100
