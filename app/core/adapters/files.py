"""Reads the files of a LoRA adapter as plain JSON and bytes: no ML library, nothing executed.

Checks that the weights are complete and not all zero. Whether they fit the base model is the engine's check.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from app.core.adapters.weights import check_weights
from app.core.errors.adapters import AdapterInvalid
from app.core.specs.job import LoraSpec, QuantizationSpec
from app.core.specs.patterns import MODULE_NAME

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
# The largest scaling of an adapter that a half-precision weight can have is far below.
_MAX_ALPHA = 1e6


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


_LayerNumber = Annotated[int, Field(ge=0, le=100_000)]


class _PeftConfig(BaseModel):
    """The fields of adapter_config.json that are read here; the engine checks the others."""

    model_config = ConfigDict(extra="ignore", strict=True)

    peft_type: Literal["LORA"]
    task_type: Literal["CAUSAL_LM"] | None = None
    base_model_name_or_path: str | None = None
    r: Annotated[int, Field(ge=1, le=MAX_RANK)]
    lora_alpha: Annotated[float, Field(gt=0, le=_MAX_ALPHA)]
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    bias: Literal["none", "all", "lora_only"] = "none"
    target_modules: list[ModuleName] | str | None = None
    modules_to_save: list[ModuleName] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[PatternKey, Annotated[int, Field(ge=1, le=MAX_RANK)]] | None = None
    alpha_pattern: dict[PatternKey, Annotated[float, Field(ge=-_MAX_ALPHA, le=_MAX_ALPHA)]] | None = None
    layers_to_transform: list[_LayerNumber] | _LayerNumber | None = None
    auto_mapping: dict[str, Any] | None = None


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
    check_weights(folder / WEIGHTS)
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


def recorded_general_path(folder: Path) -> list[str] | None:
    """Why the engine serves a job's adapter on its general path, by the record in its folder.

    Returns None where there is no record, or one of an earlier version.
    """
    found: list[str] | None = _read_record(folder).get("general_path")
    return found


def _recorded_quantization(folder: Path) -> QuantizationSpec | None:
    """Returns the quantization in Tunesmith's own record of an adapter that it made, or None."""
    try:
        return QuantizationSpec.model_validate(_read_record(folder)["spec"]["quantization"])
    except (ValueError, LookupError, TypeError):
        return None


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
