"""Reads what describes a base model: its config, tokenizer and generation settings. Reads no weights.

No code of a model is run.
"""

from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from worker.models.files import vocabulary
from worker.models.files.reading import read_json_object, reading
from worker.models.files.versions import FileVersion, read_version

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"

MODEL_HINT = (
    "It must be a causal language model of a family that transformers knows, with whole safetensors weights "
    "and no code of its own. Copy its files again, or name another base model."
)
_TOKENIZER_HINT = (
    "Copy the tokenizer's files, such as tokenizer.json, from the model's repository again, or name another "
    "base model."
)


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
    version = read_version(folder / CONFIG)
    return _read_embedding_rows(folder, version) if version else None


@lru_cache(maxsize=64)
def _read_embedding_rows(folder: Path, _version: FileVersion) -> int | None:
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
    versions = tuple(read_version(folder / name) for name in (GENERATION_CONFIG, CONFIG))
    return list(_read_end_ids(folder, versions))


@lru_cache(maxsize=64)
def _read_end_ids(folder: Path, _versions: tuple[FileVersion | None, ...]) -> tuple[int, ...]:
    """Cached while the files do not change, since every request needs them."""
    for name in (GENERATION_CONFIG, CONFIG):
        found = read_json_object(folder / name).get("eos_token_id")
        if found is None:
            continue
        with reading(f"{name} of the base model {folder.name!r}", hint=MODEL_HINT):
            ids: list[int] = found if isinstance(found, list) else [found]
            if not all(type(one) is int for one in ids):
                raise ValueError(f"eos_token_id is {found!r}, not the number of a token")
            return tuple(ids)
    return ()


def build_empty(folder: Path) -> PreTrainedModel:
    """The base model on the device `meta`, without weights. Raises ModelUnreadable."""
    config = read_config(folder)
    with reading(f"The base model {folder.name!r}", hint=MODEL_HINT), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return model
