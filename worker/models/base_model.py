"""Finds and loads base models and their tokenizers, for training, serving and exports alike.

A base model is a folder in the models folder or a Hub id. Only safetensors are loaded, and no remote code.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from torch import nn
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from app.core.engine.base_models import find_folder
from app.core.errors.base_models import HubUnreachable, ModelGated, ModelMissing
from app.core.specs.job import QuantizationSpec
from worker.models import checkpoint_weights, cpu_dequantize, prequantized, vocabulary
from worker.models.device import Device
from worker.models.nf4_roundtrip import check_kernel, round_weight
from worker.models.reading import read_json_object, reading

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"

# Weights as pickles (*.bin, *.pt) and Python files are never fetched.
_DESCRIPTION = ["*.json", "*.jinja", "*.model", "*.txt", "LICENSE*"]
_HUB_FILES = ["*.safetensors", *_DESCRIPTION]

MODEL_HINT = (
    "It must be a causal language model of a family that transformers knows, with whole safetensors weights "
    "and no code of its own. Copy its files again, or name another base model."
)
_TOKENIZER_HINT = (
    "Copy the tokenizer's files, such as tokenizer.json, from the model's repository again, or name another "
    "base model."
)

# Layers whose weights the family's code in transformers reads or changes itself (5.23), by model type.
_NEVER_QUANTIZED = {
    **dict.fromkeys(("mamba", "falcon_mamba", "jamba"), ("dt_proj",)),
    "gemma3n_text": ("prediction_coefs", "correction_coefs"),
}

Announce = Callable[[str], None]


def locate(name: str, models_folder: Path, announce: Announce = lambda line: None) -> Path:
    """The model's folder on this machine, downloaded from the Hub when it is not there yet.

    `announce` gets a line at each tenth of the download. Raises ModelMissing, ModelGated, HubUnreachable.
    """
    return find_here(name, models_folder) or _download(name, announce)


def locate_description(name: str, models_folder: Path) -> Path:
    """The model's folder on this machine, where a Hub model may yet lack its weights: see `add_weights`.

    Raises ModelMissing, ModelGated, HubUnreachable.
    """
    return find_here(name, models_folder) or _fetch(name, allow_patterns=_DESCRIPTION)


def add_weights(name: str, folder: Path, models_folder: Path, announce: Announce = lambda line: None) -> Path:
    """Download the weights for what `locate_description` found, of the same revision. Returns the folder.

    Raises ModelMissing, ModelGated, HubUnreachable.
    """
    # The Hub's cache names the folder of a revision by its commit.
    return find_here(name, models_folder) or _download(name, announce, revision=folder.name)


def find_here(name: str, models_folder: Path) -> Path | None:
    """The model's folder in the models folder; None for a Hub id. Raises ModelMissing for a folder's name."""
    folder = find_folder(name, models_folder)
    if folder is None and "/" not in name:
        raise ModelMissing(
            f"There is no base model {name!r} in the models folder, or it has no {CONFIG} that can be read.",
            hint="Put the model's folder there, whole. A Hub model is named with its owner: owner/name.",
        )
    return folder


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, with a pad token where it has a special one. Raises ModelUnreadable."""
    if (folder / CONFIG).exists():
        # transformers reads it for the tokenizer, too, and would blame the tokenizer for what is wrong there.
        read_config(folder)
    with reading_tokenizer(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        found = tokenizer.chat_template
        templates = list(found.values()) if isinstance(found, dict) else [found]
        if not all(isinstance(template, str | None) for template in templates):
            raise ValueError("its chat_template is not text")
        vocabulary.set_padding(tokenizer, count_embedding_rows(folder))
    return tokenizer


def reading_tokenizer(folder: Path) -> AbstractContextManager[None]:
    """Raise ModelUnreadable for any error that the tokenizer in a folder causes within the block."""
    return reading(f"The tokenizer in {folder.name!r}", hint=_TOKENIZER_HINT)


def read_config(folder: Path) -> PreTrainedConfig:
    """The config of a base model, which must be a causal language model. Raises ModelUnreadable."""
    settings = read_json_object(folder / CONFIG)
    read_end_ids(folder)
    with reading(f"{CONFIG} of the base model {folder.name!r}", hint=MODEL_HINT):
        if "auto_map" in settings and settings.get("model_type") not in CONFIG_MAPPING:
            raise ValueError("the model needs code of its own, which is never run here")
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ValueError(f"a model of the type {config.model_type!r} does not continue text")
        if not isinstance(config.get_text_config(), PreTrainedConfig):
            raise ValueError("its text_config is not a JSON object")
        return config


def count_embedding_rows(folder: Path) -> int | None:
    """The number of tokens that the base model in a folder has embeddings for; None where no config says it.

    Raises ModelUnreadable.
    """
    path = folder / CONFIG
    return _read_embedding_rows(folder, path.stat().st_mtime_ns) if path.is_file() else None


@lru_cache(maxsize=64)
def _read_embedding_rows(folder: Path, _modified: int) -> int | None:
    """Cached while the config does not change, since every request needs it."""
    rows: int | None = getattr(read_config(folder).get_text_config(), "vocab_size", None)
    return rows


def read_context_length(folder: Path) -> int | None:
    """How many tokens the model can read, where it says so. Raises ModelUnreadable."""
    length = getattr(read_config(folder).get_text_config(), "max_position_embeddings", None)
    if length is None:
        return None
    with reading(f"{CONFIG} of the base model {folder.name!r}", hint=MODEL_HINT):
        if not isinstance(length, int) or length < 1:
            raise ValueError(f"max_position_embeddings is {length!r}, not a number of tokens")
        return length


def read_end_ids(folder: Path) -> list[int]:
    """The end tokens in the model's generation settings, or else in its config. Raises ModelUnreadable."""
    for name in (GENERATION_CONFIG, CONFIG):
        found = read_json_object(folder / name).get("eos_token_id")
        if found is None:
            continue
        with reading(f"{name} of the base model {folder.name!r}", hint=MODEL_HINT):
            ids: list[int] = found if isinstance(found, list) else [found]
            if not all(type(one) is int for one in ids):
                raise ValueError(f"eos_token_id is {found!r}, not the number of a token")
            return ids
    return []


def build_empty(folder: Path) -> PreTrainedModel:
    """The base model on the device `meta`, without weights. Raises ModelUnreadable."""
    config = read_config(folder)
    with reading(f"The base model {folder.name!r}", hint=MODEL_HINT), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return model


def load_model(folder: Path, quantization: QuantizationSpec, device: Device) -> PreTrainedModel:
    """The base model as training uses it: 4-bit or not, frozen, on the device. Raises ModelUnreadable."""
    bits = quantization_config(quantization, device) if quantization.load_in_4bit else None
    config = read_config(folder)
    if bits and config.get_text_config().model_type in _NEVER_QUANTIZED:
        bits.llm_int8_skip_modules = _list_unquantized(build_empty(folder))
    prequantized.check(config, folder.name)
    dtype = compute_dtype(quantization, device)
    options, is_unfinished = prequantized.loading_options(config, bits)
    with reading(f"The base model {folder.name!r}", hint=MODEL_HINT):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            **{
                "output_loading_info": True,
                "ignore_mismatched_sizes": True,  # else the error does not name them
                "device_map": {"": device.torch},
                "local_files_only": True,
                "trust_remote_code": False,
                "use_safetensors": True,
                "dtype": dtype,
                **options,
            },
        )
        model: PreTrainedModel = loaded[0]
        checkpoint_weights.check_loaded(loaded[1], folder.name)
        if is_unfinished:
            model = prequantized.finish(model, bits, linears_to_quantize(model), device.torch, dtype)
    model.requires_grad_(False)
    _keep_weights_trainable(model)
    cpu_dequantize.check_model(model)
    return model


def load_for_serving(
    folder: Path, quantization: QuantizationSpec, device: Device, *, keeps_4bit: bool = False
) -> PreTrainedModel:
    """The base model as serving uses it: 4-bit weights are dequantized once, to 16 bits (32 on a CPU).

    These are the values that the adapter was trained against, without the cost of dequantizing them at each
    step. With `keeps_4bit` they stay in 4 bits, for a device without the memory for more.
    Raises ModelUnreadable.
    """
    if not quantization.load_in_4bit or keeps_4bit:
        return load_model(folder, quantization, device).eval()
    dtype = compute_dtype(quantization, device)
    if not device.is_cuda:
        unquantized = quantization.model_copy(
            update={"load_in_4bit": False, "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch.")}
        )
        model = load_model(folder, unquantized, device)
        if _round_to_4bit(model, quantization, device):
            return model.eval()
    return load_model(folder, quantization, device).dequantize(dtype=dtype).eval()


def _round_to_4bit(model: PreTrainedModel, quantization: QuantizationSpec, device: Device) -> bool:
    """Quantize and dequantize every weight that QLoRA quantizes. Returns False where that can't be done.

    On a CPU this is several times faster than to load in 4 bits and dequantize, by the same functions, so it
    gives the same values.
    """
    if hasattr(model.config, "quantization_config") or any(isinstance(m, Conv1D) for m in model.modules()):
        return False
    options = quantization_config(quantization, device)
    linears = linears_to_quantize(model).values()
    check_kernel(linears, options)
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as threads:
        list(threads.map(lambda one: round_weight(one.weight.data, options), linears))
    return True


def linears_to_quantize(model: PreTrainedModel) -> dict[str, nn.Linear | Conv1D]:
    """The layers of an unquantized model whose weights QLoRA holds in 4 bits, by name."""
    skipped = _list_unquantized(model)
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, Conv1D) and should_convert_module(name, skipped)
    }


def _list_unquantized(model: PreTrainedModel) -> list[str]:
    """Names of layers that are never held in 4 bits: those of transformers' own choice, and of the family."""
    kept_in_fp32 = list(model._keep_in_fp32_modules or [])
    names: list[str] = HfQuantizer.get_modules_to_not_convert(model, keep_in_fp32_modules=kept_in_fp32)
    return [*names, *_NEVER_QUANTIZED.get(model.config.get_text_config().model_type, ())]


def quantization_config(quantization: QuantizationSpec, device: Device) -> BitsAndBytesConfig:
    """The spec in bitsandbytes' terms."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
        bnb_4bit_compute_dtype=compute_dtype(quantization, device),
        bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
    )


def compute_dtype(quantization: QuantizationSpec, device: Device) -> torch.dtype:
    """`auto`: bfloat16 where the device has it, else float16; float32 on a CPU."""
    if quantization.bnb_4bit_compute_dtype != "auto":
        dtype: torch.dtype = getattr(torch, quantization.bnb_4bit_compute_dtype)
        return dtype
    if not device.is_cuda:
        return torch.float32
    return torch.bfloat16 if device.supports_bf16 else torch.float16


def _keep_weights_trainable(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit weights at the first evaluation on a CPU with AVX512-BF16.

    Repacked weights have no backward pass: training would continue after that evaluation with wrong gradients
    and without an error (bitsandbytes 0.50, Linear4bit.forward).
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def find_downloaded(name: str) -> Path | None:
    """The folder of a Hub model that is on this machine with its weights, or None."""
    try:
        folder = Path(snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if any(folder.glob("*.safetensors")) else None


def download_description(name: str, cache: Path) -> Path:
    """A folder with only the config and tokenizer of a Hub model, in a cache apart from whole models.

    Raises ModelMissing, ModelGated, HubUnreachable.
    """
    return _fetch(name, allow_patterns=_DESCRIPTION, cache_dir=cache)


def _download(name: str, announce: Announce, *, revision: str | None = None) -> Path:
    return _fetch(name, revision=revision, allow_patterns=_HUB_FILES, tqdm_class=_announcing(name, announce))


def _fetch(name: str, **options: Any) -> Path:
    hint = "Set HF_TOKEN for the worker to a token that may read it, and accept its terms on its Hub page."
    try:
        return Path(snapshot_download(name, **options))
    except GatedRepoError as error:
        raise ModelGated(f"The base model {name!r} is gated.", hint=hint) from error
    except RepositoryNotFoundError as error:
        raise ModelMissing(
            f"There is no base model {name!r} on the Hub, or it is private.",
            hint="Check the spelling (owner/name). " + hint,
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, ConnectionError) as error:
        raise HubUnreachable(
            f"The base model {name!r} is not on this machine and the Hub can't be reached.",
            hint="Check the network, or put the model's folder into the models folder and name it so.",
        ) from error


def _announcing(name: str, announce: Announce) -> type[tqdm]:
    """A progress bar that draws nothing and announces a line at each tenth of the bytes."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            self._counts_bytes = options.get("unit") == "B"
            self._announced_tenths = 0
            super().__init__(*args, **{**options, "disable": False, "file": _Silent()})

        def update(self, n: float | None = 1) -> bool | None:
            drawn = super().update(n)
            tenths = int(10 * self.n / self.total) if self._counts_bytes and self.total else 0
            if tenths > self._announced_tenths:
                self._announced_tenths = tenths
                announce(f"Downloading {name}: {tenths * 10}% of {self.total / 1e9:.2f} GB")
            return drawn

    return Bar


class _Silent:
    """An output for the bar's drawing that discards it."""

    def write(self, _text: str) -> int:
        return 0

    def flush(self) -> None:
        pass
