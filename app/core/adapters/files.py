"""Reads the files of a LoRA adapter as plain JSON and bytes: no ML library, nothing executed.

Checks that the weights are complete and not all zero. Whether they fit the base model is the engine's check.
"""

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from app.core.errors.adapters import AdapterInvalid
from app.core.specs.job import MODULE_NAME, LoraSpec, QuantizationSpec

# The files of an adapter's folder. PEFT and transformers name all but RECORD, which is Tunesmith's own.
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TEMPLATE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
RECORD = "tunesmith.json"

MAX_RANK = 1024
# PEFT compiles the keys of rank_pattern and alpha_pattern as regular expressions, which may take exponential
# time. Taken are names, which it compares with the ends of modules' names; with a ^ they are whole names.
# PEFT itself writes `.*\.` before the names of experts' parameters.
PATTERN_KEY = re.compile(r"(?:\^|\.\*\\\.)?([A-Za-z0-9_-]+(?:\\?\.[A-Za-z0-9_-]+)*)\$?")
_MAX_HEADER_BYTES = 25 << 20
_CHUNK_BYTES = 1 << 20
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_HINT = "Save it again with PEFT's save_pretrained."


def check_pattern_key(key: str) -> str:
    """Returns the key of a rank_pattern or alpha_pattern. Raises ValueError where it is no layer's name."""
    if not PATTERN_KEY.fullmatch(key):
        raise ValueError(
            f"{key[:100]!r} is no name of a layer, as 'q_proj' or 'layers.1.self_attn.q_proj' are; regular "
            "expressions are not taken"
        )
    return key


ModuleName = Annotated[str, Field(pattern=MODULE_NAME)]
PatternKey = Annotated[str, Field(max_length=1000), AfterValidator(check_pattern_key)]


class _PeftConfig(BaseModel):
    """The fields of adapter_config.json that are read here; the engine checks the others."""

    model_config = ConfigDict(extra="ignore", strict=True)

    peft_type: Literal["LORA"]
    task_type: Literal["CAUSAL_LM"] | None = None
    base_model_name_or_path: str | None = None
    r: Annotated[int, Field(ge=1, le=MAX_RANK)]
    lora_alpha: Annotated[float, Field(gt=0, strict=False)]
    lora_dropout: Annotated[float, Field(ge=0, lt=1, strict=False)] = 0.0
    bias: Literal["none", "all", "lora_only"] = "none"
    target_modules: list[ModuleName] | str | None = None
    modules_to_save: list[ModuleName] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[PatternKey, Annotated[int, Field(ge=1, le=MAX_RANK)]] | None = None
    alpha_pattern: dict[PatternKey, Annotated[float, Field(strict=False, allow_inf_nan=False)]] | None = None
    layers_to_transform: list[int] | int | None = None
    auto_mapping: dict[str, Any] | None = None


class _Tensor(BaseModel):
    """One entry of a safetensors header."""

    model_config = ConfigDict(strict=True)

    dtype: str
    shape: list[Annotated[int, Field(ge=0)]]
    data_offsets: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]


@dataclass(frozen=True)
class Description:
    """What an adapter's files say. `lora` is None where a job's spec has no such settings."""

    base_model: str | None
    lora: LoraSpec | None
    quantization: QuantizationSpec | None


def describe(folder: Path) -> Description:
    """Read a PEFT folder. Raises AdapterInvalid, also for weights that are incomplete or all zero."""
    try:
        config = _PeftConfig.model_validate_json((folder / CONFIG).read_bytes())
    except ValidationError as error:
        raise AdapterInvalid(f"{CONFIG}: {_first(error)}.", hint="Only LoRA adapters are taken.") from error
    _check_weights(folder / WEIGHTS)
    return Description(config.base_model_name_or_path, _to_spec(config), _recorded_quantization(folder))


def _first(error: ValidationError) -> str:
    found = error.errors(include_url=False)[0]
    place = ".".join(map(str, found["loc"]))
    return f"{place}: {found['msg']}" if place else found["msg"]


def _to_spec(config: _PeftConfig) -> LoraSpec | None:
    """Returns the adapter's settings as those of a job, or None where a job's spec can't have them."""
    if config.rank_pattern or config.alpha_pattern or config.layers_to_transform is not None:
        return None
    if isinstance(config.target_modules, str) and config.target_modules != "all-linear":
        return None  # a regular expression
    targets = config.target_modules
    try:
        return LoraSpec(
            r=config.r,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            bias=config.bias,
            target_modules=sorted(targets) if isinstance(targets, list) else targets,
            modules_to_save=config.modules_to_save,
            use_rslora=config.use_rslora,
            use_dora=config.use_dora,
        )
    except ValidationError:
        return None


def _recorded_quantization(folder: Path) -> QuantizationSpec | None:
    """Returns the quantization in Tunesmith's own record of an adapter that it made, or None."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
        return QuantizationSpec.model_validate(record["spec"]["quantization"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _check_weights(path: Path) -> None:
    """Raise AdapterInvalid where bytes of a tensor are missing, or every lora_B is zero."""
    tensors, start = _read_header(path)
    size = path.stat().st_size - start
    for name, tensor in tensors.items():
        count = 1
        for length in tensor.shape:
            count *= length
        begin, end = tensor.data_offsets
        if tensor.dtype not in _ITEM_BYTES:
            raise AdapterInvalid(f"{WEIGHTS}: {name!r} is of type {tensor.dtype}, not a float.", hint=_HINT)
        if not begin <= end <= size or end - begin != count * _ITEM_BYTES[tensor.dtype]:
            raise AdapterInvalid(
                f"{WEIGHTS}: the bytes of {name!r} are not all there.", hint="Pack it again."
            )
    updates = [tensor for name, tensor in tensors.items() if ".lora_B." in name]
    if not updates:
        raise AdapterInvalid(f"{WEIGHTS} holds no weights of a LoRA adapter (lora_A, lora_B).", hint=_HINT)
    others = [name for name in tensors if ".lora_" not in name]
    if not others and not any(_has_content(path, start, tensor) for tensor in updates):
        raise AdapterInvalid(
            "Every lora_B of the adapter is zero: it changes nothing.",
            hint="Was it saved before it was trained?",
        )


def _read_header(path: Path) -> tuple[dict[str, _Tensor], int]:
    """Returns the tensors by name, and where their bytes begin (format: huggingface.co/docs/safetensors)."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError("its header is too long")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {name: _Tensor.model_validate(tensor) for name, tensor in header.items()}, 8 + length
    except (ValueError, struct.error, AttributeError, RecursionError) as error:
        raise AdapterInvalid(f"{WEIGHTS} is no safetensors file.", hint=_HINT) from error


def _has_content(path: Path, start: int, tensor: _Tensor) -> bool:
    return any(piece.strip(b"\0") for piece in _read(path, start, tensor))


def _read(path: Path, start: int, tensor: _Tensor) -> Iterator[bytes]:
    begin, end = tensor.data_offsets
    with path.open("rb") as file:
        file.seek(start + begin)
        while begin < end and (piece := file.read(min(end - begin, _CHUNK_BYTES))):
            begin += len(piece)
            yield piece
