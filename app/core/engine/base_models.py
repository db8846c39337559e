"""Base models that a request may name, folders in the models folder or Hub ids, and the allow-list.

Reads `config.json` as plain JSON and loads no model.
"""

import json
import os
from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from app.core.engine.serving import find_config_obstacle
from app.core.engine.wire import Wire
from app.core.errors.base_models import ModelNotAllowed, UnknownModel
from app.core.settings import Settings
from app.core.storage.similar import suggest


class LocalModel(Wire):
    """A base model in the models folder of the API or of a worker, in Hugging Face's layout."""

    name: str
    architecture: str | None
    context_length: int | None
    size_bytes: int
    obstacle: str | None = Field(description="What in it the paged engine can't compute.")


class ModelDescription(Wire):
    """What `config.json` says of a base model."""

    architecture: str | None = Field(None, description="Its class in transformers.")
    context_length: int | None = Field(None, description="Most tokens of prompt and answer together.")
    continues_text: bool = Field(True, description="False: its class is of another kind of model.")
    obstacle: str | None = Field(None, description="What in it the paged engine can't compute.")


class DownloadedModel(Wire):
    """A model of the Hub in the cache of a worker's machine, as the worker's row has it."""

    name: str
    size_bytes: int
    used_at: datetime = Field(description="When its weights were last read, or downloaded.")
    is_whole: bool = Field(description="False: a download of its weights has not ended, or broke off.")
    description: ModelDescription = ModelDescription()


def find_local(settings: Settings) -> list[LocalModel]:
    """Returns the allowed models of this machine's models folder, sorted by name."""
    found = [_describe(config) for config in _configs(settings.models_folder)]
    return [model for model in found if is_allowed(model.name, settings)]


def find_names(settings: Settings) -> list[str]:
    """Returns the names of the allowed models of this machine's models folder, without a look into them."""
    names = [config.parent.name for config in _configs(settings.models_folder)]
    return [name for name in names if is_allowed(name, settings)]


def find_folder(name: str, models_folder: Path) -> Path | None:
    """Returns the folder of a local model, or None, which means that the name is a Hub id.

    The name is compared with the names of the folders before it is joined to a path.
    """
    # Each request of an engine asks for one: no look into the other folders.
    try:
        is_listed = name in os.listdir(models_folder)
    except OSError:
        return None
    folder = models_folder / name if is_listed and not name.startswith(".") else None
    return folder if folder is not None and (folder / "config.json").exists() else None


def check(name: str, settings: Settings, names: Collection[str]) -> None:
    """Raise ModelNotAllowed or UnknownModel where this base model can't be used; `names` are in folders."""
    if not is_allowed(name, settings):
        allowed = ", ".join(settings.allowed_models)
        raise ModelNotAllowed(
            f"The base model {name!r} is not allowed here.", param="base_model", hint=f"Allowed: {allowed}."
        )
    if "/" not in name and name not in names:
        here = ", ".join(names) or "none yet"
        raise UnknownModel(
            f"There is no base model {name!r} in the models folder.",
            param="base_model",
            hint=f"{suggest(name, names)}In the models folder: {here}. A Hub model is named with its owner, "
            "as in 'HuggingFaceTB/SmolLM2-135M-Instruct'.",
        )


def is_allowed(name: str, settings: Settings) -> bool:
    """Whether the allow-list is empty or contains the model."""
    return not settings.allowed_models or name in settings.allowed_models


def _configs(folder: Path) -> list[Path]:
    configs = folder.glob("*/config.json") if folder.is_dir() else []
    return sorted(path for path in configs if not path.parent.name.startswith("."))


def describe_config(path: Path) -> ModelDescription:
    """What a `config.json` says; nothing where it can't be read."""
    config = _read_config(path)
    architectures = config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    # Of models that also read images, the configuration of the language model.
    inner = config.get("text_config")
    language = inner if isinstance(inner, dict) else config
    length = config.get("max_position_embeddings", language.get("max_position_embeddings"))
    return ModelDescription(
        architecture=architecture if isinstance(architecture, str) else None,
        context_length=length if isinstance(length, int) else None,
        obstacle=find_config_obstacle(language),
        continues_text=_continues_text(architecture, reads_images=isinstance(inner, dict)),
    )


def _continues_text(architecture: object, *, reads_images: bool) -> bool:
    """Whether a class is that of a language model; where no class is named it may be."""
    if not isinstance(architecture, str):
        return True
    return "CausalLM" in architecture or "LMHead" in architecture or reads_images


def _describe(config_path: Path) -> LocalModel:
    folder = config_path.parent
    found = describe_config(config_path)
    return LocalModel(
        name=folder.name,
        architecture=found.architecture,
        context_length=found.context_length,
        obstacle=found.obstacle,
        size_bytes=sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
