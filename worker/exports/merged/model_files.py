"""A merged model's files besides its weights: configs, tokenizer, chat template, license."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from app.core.errors.exports import TokenizerUnfit
from worker.exports.merged.merge import BaseShape
from worker.models.files import description
from worker.models.files.reading import read_json_object

_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja"),
)
_BASE_FILES = ("generation_config.json", "LICENSE*")


def output_dtype(wanted: str, config: Any) -> torch.dtype:
    """The type of the merged weights. `auto` means float16 for a float16 base model, else bfloat16."""
    if wanted != "auto":
        chosen: torch.dtype = getattr(torch, wanted)
        return chosen
    own = config.get_text_config().dtype or config.dtype
    return torch.float16 if own in (torch.float16, "float16") else torch.bfloat16


def load_tokenizer(adapter: Path, base: Path, shape: BaseShape) -> PreTrainedTokenizerBase:
    """The tokenizer that the adapter was trained with.

    Raises TokenizerUnfit where the model's embedding has no row for a token.
    """
    tokenizer = description.load_tokenizer(find_tokenizer(adapter, base))
    rows = shape.config.get_text_config().vocab_size
    unknown = [token for token, number in tokenizer.get_vocab().items() if number >= rows]
    if unknown:
        shown = ", ".join(repr(token) for token in sorted(unknown)[:5])
        raise TokenizerUnfit(
            f"The tokenizer has {len(unknown)} tokens that the model has no row for: {shown}.",
            hint="Tokens were added to the tokenizer and not to the model's embeddings. Remove them, or "
            "train on a base model that has rows for them.",
        )
    return tokenizer


def find_tokenizer(adapter: Path, base: Path) -> Path:
    """The tokenizer's folder: the adapter's, which has training's chat template, else the base model's."""
    return adapter if (adapter / "tokenizer_config.json").is_file() else base


def write_companion_files(
    folder: Path, *, base: Path, adapter: Path, dtype: torch.dtype, is_tied: bool
) -> None:
    """Write all files of a merged model except its weights and its model card."""
    config = read_json_object(base / "config.json")
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    if not is_tied:
        config["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for pattern in _BASE_FILES:
        for path in base.glob(pattern):
            shutil.copyfile(path, folder / path.name)
    for name in _TOKENIZER_FILES:
        source = find_tokenizer(adapter, base) / name
        if source.is_file():
            shutil.copyfile(source, folder / name)


def copy_companion_files(source: Path, target: Path) -> None:
    """Copy the files that `write_companion_files` wrote, for the same weights in another format."""
    for path in source.iterdir():
        if path.suffix not in (".safetensors", ".bin") and not path.name.endswith(".index.json"):
            shutil.copyfile(path, target / path.name)
