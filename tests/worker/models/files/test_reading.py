"""Errors of libraries become sentences; those of the machine, and Tunesmith's own, pass unchanged."""

import errno
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from app.core.errors import TunesmithError
from app.core.errors.base_models import HubUnreachable, ModelUnreadable
from worker.models.files.error_text import describe
from worker.models.files.reading import read_json_object, reading

PANIC = '{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}, "normalizer": %s}'


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyError("head_dim"), "KeyError: 'head_dim'"),
        (ValueError("The hidden size is\n  no multiple of 7."), "The hidden size is no multiple of 7"),
        (ValueError("Unrecognized model in /srv/models/mine. Is it whole?"), "mine. Is it whole?"),
        (ValueError("See https://hf.co/docs/hub for more"), "See https://hf.co/docs/hub for more"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/srv/m/config.json"), "(config.json)"),
        (AssertionError(), "AssertionError"),
        (RuntimeError("word " * 200), "word…"),
    ],
)
def test_an_error_is_one_short_line_without_folders(error: Exception, text: str) -> None:
    described = describe(error)

    assert described.endswith(text)
    assert "/srv" not in described
    assert len(described) <= 301


@pytest.mark.parametrize(
    "error",
    [
        HubUnreachable("The Hub can't be reached."),
        OSError(errno.ENOSPC, "No space left on device"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: device-side assert triggered"),
        KeyboardInterrupt(),
        SystemExit(1),
    ],
)
def test_errors_that_no_file_causes_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, reading("The tokenizer", hint="Copy it again."):
        raise error

    assert caught.value is error


def test_a_panic_of_a_library_written_in_rust_is_an_error_like_others() -> None:
    broken = PANIC % '{"type": "Precompiled", "precompiled_charsmap": "AAAA"}'

    with (
        pytest.raises(ModelUnreadable, match="The tokenizer can't be used: Precompiled") as caught,
        reading("The tokenizer", hint="Copy it again."),
    ):
        Tokenizer.from_str(broken)

    assert caught.value.hint == "Copy it again."


def test_the_error_is_of_the_kind_that_the_caller_names() -> None:
    class Refused(TunesmithError):
        code = "refused"

    with (
        pytest.raises(Refused, match="The adapter can't be used: KeyError: 'r'"),
        reading("The adapter", hint="Save it again.", raises=Refused),
    ):
        raise KeyError("r")


@pytest.mark.parametrize("content", [b"", b"[1]", b"null", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_object_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)

    with pytest.raises(ModelUnreadable, match=r"config\.json in "):
        read_json_object(tmp_path / "config.json")


def test_a_missing_file_is_an_empty_object(tmp_path: Path) -> None:
    assert read_json_object(tmp_path / "config.json") == {}
