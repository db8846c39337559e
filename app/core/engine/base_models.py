"""Base models that a request may name, folders in the models folder or Hub ids, and the allow-list.

Reads `config.json` as plain JSON and loads no model.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.core.engine.serving import find_config_obstacle
from app.core.errors.base_models import ModelNotAllowed, UnknownModel
from app.core.settings import Settings
from app.core.storage.similar import suggest


@dataclass(frozen=True)
class LocalModel:
    """A base model in the models folder, in Hugging Face's layout."""

    name: str
    path: Path
    architecture: str | None
    context_length: int | None
    size_bytes: int
    # What in it the paged engine can't compute, by its configuration.
    obstacle: str | None


def find_local(settings: Settings) -> list[LocalModel]:
    """Returns the allowed models of the models folder, sorted by name."""
    found = [_describe(config) for config in _configs(settings.models_folder)]
    return [model for model in found if is_allowed(model.name, settings)]


def find_folder(name: str, models_folder: Path) -> Path | None:
    """Returns the folder of a local model, or None, which means that the name is a Hub id.

    The name is compared with the names of the folders and never joined to a path.
    """
    return next((config.parent for config in _configs(models_folder) if config.parent.name == name), None)


def check(name: str, settings: Settings) -> None:
    """Raise ModelNotAllowed or UnknownModel where this base model can't be used."""
    if not is_allowed(name, settings):
        allowed = ", ".join(settings.allowed_models)
        raise ModelNotAllowed(
            f"The base model {name!r} is not allowed here.", param="base_model", hint=f"Allowed: {allowed}."
        )
    if "/" not in name and find_folder(name, settings.models_folder) is None:
        names = [model.name for model in find_local(settings)]
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


def _describe(config_path: Path) -> LocalModel:
    config = _read_config(config_path)
    folder = config_path.parent
    architectures = config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    length = config.get("max_position_embeddings")
    # Of models that also read images, the configuration of the language model.
    inner = config.get("text_config")
    return LocalModel(
        name=folder.name,
        path=folder,
        architecture=architecture if isinstance(architecture, str) else None,
        context_length=length if isinstance(length, int) else None,
        obstacle=find_config_obstacle(inner if isinstance(inner, dict) else config),
        size_bytes=sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
