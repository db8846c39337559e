"""Finds the folder of a base model: in the models folder, or downloaded from the Hub. Loads nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from tqdm.auto import tqdm

from app.core.engine.base_models import find_folder
from app.core.errors.base_models import HubUnreachable, ModelGated, ModelMissing
from worker.models.files.description import CONFIG
from worker.models.files.fingerprint import find_files, reading_weights

# Weights as pickles (*.bin, *.pt) and Python files are never fetched.
_DESCRIPTION = ["*.json", "*.jinja", "*.model", "*.txt", "LICENSE*"]
_HUB_FILES = ["*.safetensors", *_DESCRIPTION]


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


def find_downloaded(name: str) -> Path | None:
    """The folder of a Hub model that is on this machine with all of its weights, or None.

    Raises ModelUnreadable.
    """
    try:
        folder = Path(snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if has_weights(folder) else None


def has_weights(folder: Path) -> bool:
    """Whether all files of the model's weights are there; a download may yet add some.

    Raises ModelUnreadable for an index that can't be read.
    """
    with reading_weights(folder):
        files = find_files(folder)
        return bool(files) and all(path.is_file() for path in files)


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
