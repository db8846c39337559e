"""PEFT folders as bytes, and valid or malformed archives of them."""

import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "owner/model",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["v_proj", "q_proj"],
}
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"


def safetensors(tensors: dict[str, list[float]] | None = None, **header: Any) -> bytes:
    """A safetensors file of float32 vectors; `header` replaces entries of its header."""
    tensors = (
        {f"{MODULE}.lora_A.weight": [1.0], f"{MODULE}.lora_B.weight": [0.5]} if tensors is None else tensors
    )
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    content = b""
    for name, values in tensors.items():
        begin = len(content)
        content += struct.pack(f"<{len(values)}f", *values)
        entries[name] = {"dtype": "F32", "shape": [len(values)], "data_offsets": [begin, len(content)]}
    encoded = json.dumps(entries | header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + content


def peft_files(config: dict[str, Any] | None = None, **more: bytes) -> dict[str, bytes]:
    """The files of an adapter, by path."""
    named = {"adapter_config.json": json.dumps({**CONFIG, **(config or {})}).encode()}
    return named | {"adapter_model.safetensors": safetensors()} | more


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip of these files, with the same bytes at any time of day."""
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
        return file.getvalue()


def zipped_folder(folder: Path) -> bytes:
    """A zip of the files of a folder, as of one that PEFT saved."""
    return zipped({path.name: path.read_bytes() for path in sorted(folder.iterdir())})


def tarred(files: dict[str, bytes], *members: tarfile.TarInfo, mode: str = "w") -> bytes:
    """A tar of these files and of members without content."""
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            for member in members:
                archive.addfile(member)
        return file.getvalue()
