"""Finds the folder of a base model: in the models folder, or downloaded from the Hub. Loads nothing."""

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from app.core.engine.base_models import find_folder
from app.core.errors.base_models import ModelMissing
from worker.models.files import hub, hub_cache
from worker.models.files.description import CONFIG
from worker.models.files.fingerprint import find_files, reading_weights

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
    return find_here(name, models_folder) or hub.fetch(name, hub.DESCRIPTION)


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
        folder = Path(snapshot_download(name, allow_patterns=hub.FILES, local_files_only=True))
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
    return hub.fetch(name, hub.DESCRIPTION, cache_dir=cache)


def download_config(name: str, cache: Path) -> Path:
    """A folder with only the config of a Hub model, in a cache apart from whole models.

    Raises ModelMissing, ModelGated, HubUnreachable.
    """
    return hub.fetch(name, [CONFIG], cache_dir=cache)


def _download(name: str, announce: Announce, *, revision: str | None = None) -> Path:
    folder = hub.fetch(
        name, hub.FILES, revision=revision, tqdm_class=hub.make_bar(_tell_tenths(name, announce))
    )
    hub_cache.mark_used(folder)
    return folder


def _tell_tenths(name: str, announce: Announce) -> hub.OnProgress:
    """Announces a line at each tenth of a download."""
    announced = 0

    def tell(done: int, total: int) -> None:
        nonlocal announced
        if total and done * 10 // total > announced:
            announced = done * 10 // total
            announce(f"Downloading {name}: {announced * 10}% of {total / 1e9:.2f} GB")

    return tell
