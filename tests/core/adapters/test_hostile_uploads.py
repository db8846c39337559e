"""Adapters made to harm: each is refused with a sentence, in little time and memory."""

import gzip
import io
import json
import struct
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from app.core.adapters import archives, weights
from app.core.adapters.archives import unpack
from app.core.adapters.files import describe
from app.core.errors.adapters import AdapterInvalid
from tests.adapter_archives import MODULE, peft_files, safetensors, tarred, zipped

A, B = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"


def with_header(header: bytes, content: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + content


def tensors(*entries: tuple[str, dict[str, Any]], size: int = 8) -> bytes:
    header = ", ".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries)
    return with_header(f"{{{header}}}".encode(), b"\1" * size)


def vector(begin: int, end: int, **more: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end]} | more


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (with_header(b"[]"), "is no JSON object"),
        (with_header(b'"text"'), "is no JSON object"),
        (with_header(b"1"), "is no JSON object"),
        (with_header(b"null"), "is no JSON object"),
        (with_header(b'{"x": null}'), "is no safetensors file"),
        (with_header(b'{"x": %s}' % (b"9" * 4000)), "a number in its header is too large"),
        (with_header(b"[" * 100_000), "is no safetensors file"),
        (with_header(b"\xff\xfe{}"), "is no safetensors file"),
        (with_header(b"{" + b'"x":[],' * 400_000 + b"}"), "has more than 120,000 tensors"),
        (struct.pack("<Q", 2**63) + b"{}", "its header is too long"),
        (tensors((A, vector(0, 4)), (A, vector(4, 8))), "names something twice"),
        (tensors((A, vector(0, 8)), (B, vector(4, 8))), "overlap those of another tensor"),
        (tensors((A, vector(0, 4)), (B, vector(8, 12)), size=12), "do not follow the others"),
        (tensors((A, vector(0, 4)), (B, vector(4, 8)), size=12), "bytes that belong to no tensor"),
        (
            tensors((A, vector(0, 4)), (B, vector(4, 8, shape=[2**62, 2**62]))),
            "not as many as its shape says",
        ),
        (tensors((A, vector(0, 4)), (B, vector(4, 8, shape=[1] * 17))), "is no safetensors file"),
        (tensors((A, vector(0, 4)), (B, vector(4, 8, data_offsets=[8, 4]))), "not as many as its shape says"),
    ],
)
def test_a_malformed_header_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(AdapterInvalid) as refused:
        weights.check_weights(tmp_path / "adapter_model.safetensors")
    assert message in refused.value.message
    assert len(refused.value.message) < 500


def test_integers_of_thousands_of_digits_are_never_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    monkeypatch.setattr(weights, "int", lambda digits: parsed.append(digits) or 0, raising=False)
    numbers = b",".join([b"9" * 4000] * 1000)
    with pytest.raises(ValueError, match="too large"):
        weights._parse(b'{"x": [%s]}' % numbers)
    assert parsed == []


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"lora_alpha": "16"}, "lora_alpha"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_alpha": -1}, "lora_alpha"),
        ({"lora_alpha": float("inf")}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"lora_alpha": 1e308}, "lora_alpha"),
        ({"lora_alpha": True}, "lora_alpha"),
        ({"lora_dropout": "0.1"}, "lora_dropout"),
        ({"r": 10**9}, "r"),
        ({"r": -1}, "r"),
        ({"r": 10**5000}, "r"),
        ({"r": 8.5}, "r"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.q_proj"),
        ({"rank_pattern": {"q_proj": 10**9}}, "rank_pattern.q_proj"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "alpha_pattern.q_proj"),
        ({"alpha_pattern": {"q_proj": "16"}}, "alpha_pattern.q_proj"),
        ({"alpha_pattern": {"q_proj": 1e308}}, "alpha_pattern.q_proj"),
        ({"layers_to_transform": -1}, "layers_to_transform"),
        ({"layers_to_transform": [10**30]}, "layers_to_transform"),
    ],
)
def test_a_number_without_sense_is_named(tmp_path: Path, config: dict[str, Any], field: str) -> None:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        files = peft_files(config)
    finally:
        sys.set_int_max_str_digits(limit)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(AdapterInvalid) as refused:
        describe(tmp_path)
    assert refused.value.message.startswith("adapter_config.json: ")
    assert field in refused.value.message or "number" in refused.value.message


def unpacked(tmp_path: Path, content: bytes) -> str:
    """The sentence with which an archive is refused."""
    (tmp_path / "archive").write_bytes(content)
    (tmp_path / "folder").mkdir()
    with pytest.raises(AdapterInvalid) as refused:
        unpack(tmp_path / "archive", tmp_path / "folder", max_bytes=1 << 30)
    assert refused.value.hint
    return refused.value.message


def test_a_zip_with_more_entries_than_a_directory_may_have_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    original = zipfile.ZipInfo.__init__
    content = zipped({f"{number:030}": b"" for number in range(20_000)})
    monkeypatch.setattr(
        zipfile.ZipInfo, "__init__", lambda self, *a, **k: (made.append(self), original(self, *a, **k))[1]
    )
    assert "headers are far too large" in unpacked(tmp_path, content)
    assert made == []


def member(**fields: Any) -> tarfile.TarInfo:
    found = tarfile.TarInfo("adapter_config.json")
    for name, value in fields.items():
        setattr(found, name, value)
    return found


def negative_size(name: str = "adapter_config.json", kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar whose first entry has -512 bytes, in tar's base-256 numbers."""
    header = bytearray(member(name=name, type=kind).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header[:512]):06o}\0 ".encode()
    return bytes(header) + bytes(1024)


@pytest.mark.parametrize(
    "kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.DIRTYPE]
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_tar_entry_of_negative_size_is_refused(tmp_path: Path, kind: bytes, pack: Any) -> None:
    assert unpacked(tmp_path, pack(negative_size(kind=kind)))


def pax(**headers: str) -> bytes:
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            archive.addfile(member(pax_headers=headers))
        return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pax(size="-1"),
        pax(size="9" * 5000),
        pax(size="1e30"),
        pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x"}),
        pax(**{"GNU.sparse.map": "1,x", "GNU.sparse.size": "9"}),
        tarred({"adapter_config.json": b"{}"})[:700],
        zipped(peft_files())[:-30] + b"PK\x05\x06" + b"\xff" * 18,
        zipped(peft_files()).replace(b"PK\x01\x02", b"PK\x01\x03"),
        zipped(peft_files()).replace(b"PK\x03\x04", b"PK\x03\x05"),
    ],
)
def test_a_malformed_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    assert unpacked(tmp_path, content)


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    content = bytearray(zipped(peft_files()))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    assert unpacked(tmp_path, bytes(content)) == "The archive is encrypted."


def test_chained_tar_headers_do_not_exhaust_the_stack(tmp_path: Path) -> None:
    long_name = member(name="x", type=tarfile.GNUTYPE_LONGNAME).tobuf(tarfile.GNU_FORMAT)
    assert unpacked(tmp_path, long_name * 5000 + bytes(1024))


def test_a_file_that_is_parsed_may_not_be_long(tmp_path: Path) -> None:
    content = zipped(peft_files() | {"adapter_config.json": b" " * (archives._MAX_PARSED_BYTES + 1)})
    assert "adapter_config.json has more than 4 MiB" in unpacked(tmp_path, content)


def test_a_good_adapter_with_many_tensors_is_taken(tmp_path: Path) -> None:
    names = {f"base_model.layers.{n}.lora_{kind}.weight": [1.0] for n in range(3000) for kind in "AB"}
    (tmp_path / "adapter_model.safetensors").write_bytes(safetensors(names))
    weights.check_weights(tmp_path / "adapter_model.safetensors")
