"""Unpacking adapter archives; refusals of links, unsafe paths, bombs, pickles and several adapters."""

import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from app.core.adapters.archives import unpack
from app.core.errors.adapters import AdapterInvalid
from tests.adapter_archives import peft_files, tarred, zipped

MAX_BYTES = 1 << 20


def unpacked(tmp_path: Path, raw: bytes, max_bytes: int = MAX_BYTES) -> dict[str, bytes]:
    archive, folder = tmp_path / "archive", tmp_path / "folder"
    archive.write_bytes(raw)
    folder.mkdir()
    unpack(archive, folder, max_bytes=max_bytes)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refusal(tmp_path: Path, raw: bytes, max_bytes: int = MAX_BYTES) -> str:
    with pytest.raises(AdapterInvalid) as refused:
        unpacked(tmp_path, raw, max_bytes)
    outside = {path.name for path in tmp_path.iterdir()}
    assert outside == {"archive", "folder"}
    return refused.value.message


@pytest.mark.parametrize("folder", ["", "my-adapter/", "./"])
@pytest.mark.parametrize(
    "pack", [zipped, tarred, lambda files: tarred(files, mode="w:gz")], ids=["zip", "tar", "tar.gz"]
)
def test_the_files_of_an_adapter_are_unpacked_and_nothing_else(tmp_path: Path, folder: str, pack) -> None:  # type: ignore[no-untyped-def]
    wanted = peft_files() | {"tokenizer_config.json": b"{}", "README.md": b"Mine."}
    junk = {"optimizer.pt": b"pickle", "checkpoint-5/adapter_config.json/x": b"", ".DS_Store": b""}
    raw = pack({f"{folder}{name}": content for name, content in (wanted | junk).items()})
    assert unpacked(tmp_path, raw) == wanted


@pytest.mark.parametrize("name", ["../adapter_config.json", "/adapter_config.json", "a/../../x", "..\\x"])
def test_paths_that_leave_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    assert "leads out of it" in refusal(tmp_path, tarred(peft_files() | {name: b"x"}))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_of_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("README.md")
    member.type, member.linkname = kind, "/etc/passwd"
    assert "link or a device" in refusal(tmp_path, tarred(peft_files(), member))


def test_links_of_a_zip_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "made", "w") as archive:
        link = zipfile.ZipInfo("README.md")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    raw = (tmp_path / "made").read_bytes()
    (tmp_path / "made").unlink()
    assert "link or a device" in refusal(tmp_path, raw)


@pytest.mark.parametrize("pack", [zipped, lambda files: tarred(files, mode="w:gz")], ids=["zip", "tar.gz"])
def test_a_bomb_is_not_unpacked(tmp_path: Path, pack) -> None:  # type: ignore[no-untyped-def]
    raw = pack(peft_files() | {"big.json": b"\0" * (2 * MAX_BYTES)})
    assert len(raw) < 10_000
    assert "unpacks to more than 1 MiB" in refusal(tmp_path, raw)


def test_a_zip_that_lies_about_a_size_is_refused(tmp_path: Path) -> None:
    files = peft_files()
    raw = zipped(files)
    honest = struct.pack("<I", len(files["adapter_model.safetensors"]))
    assert "can't be read" in refusal(tmp_path, raw.replace(honest, struct.pack("<I", 3)))


def test_headers_of_huge_size_are_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 1 << 30
    assert "headers are far too large" in refusal(tmp_path, member.tobuf() + bytes(1024))


def test_a_pickle_says_how_to_make_safetensors_of_it(tmp_path: Path) -> None:
    files = peft_files()
    del files["adapter_model.safetensors"]
    assert "adapter_model.bin, a pickle" in refusal(tmp_path, zipped(files | {"adapter_model.bin": b"x"}))


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    files = peft_files()
    del files[missing]
    assert refusal(tmp_path, zipped(files)) == f"The archive has no {missing}."


def test_two_adapters_in_one_archive_are_refused(tmp_path: Path) -> None:
    files = {f"{name}/{path}": content for name in "ab" for path, content in peft_files().items()}
    assert "twice: a/adapter_config.json and b/adapter_config.json" in refusal(tmp_path, tarred(files))


def test_files_that_are_spread_over_folders_are_refused(tmp_path: Path) -> None:
    first, second = peft_files().items()
    assert "several folders" in refusal(tmp_path, zipped(dict([(f"a/{first[0]}", first[1]), second])))


@pytest.mark.parametrize(
    "raw",
    [b"", b"junk" * 1000, b"\x1f\x8bjunk", zipped(peft_files())[:-40]],
    ids=["empty", "junk", "no gzip", "half a zip"],
)
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, raw: bytes) -> None:
    assert refusal(tmp_path, raw)
