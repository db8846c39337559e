"""Downloads files of a Hub model into the Hub's cache, and counts their bytes. Knows no torch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from tqdm.auto import tqdm

from app.core.errors import TunesmithError
from app.core.errors.base_models import HubUnreachable, ModelGated, ModelMissing

# Weights as pickles (*.bin, *.pt) and Python files are never fetched.
DESCRIPTION = ["*.json", "*.jinja", "*.model", "*.txt", "LICENSE*"]
FILES = ["*.safetensors", *DESCRIPTION]
TOKEN_HINT = "Set HF_TOKEN for the worker to a token that may read it, and accept its terms on its Hub page."

_NO_NETWORK = {"TransportError", "TimeoutError"}

OnProgress = Callable[[int, int], None]


def fetch(name: str, patterns: Sequence[str], **options: Any) -> Path:
    """The folder of a revision with the files that match, downloaded where they are not there yet.

    Raises ModelMissing, ModelGated, HubUnreachable.
    """
    found: str = _ask(name, patterns, **options)
    return Path(found)


def count_bytes(name: str) -> tuple[int, int]:
    """(bytes of a model's files, bytes of those that are in the cache). Downloads nothing.

    Raises ModelMissing, ModelGated, HubUnreachable.
    """
    files = _ask(name, FILES, dry_run=True)
    sizes = [(file.file_size or 0, file.will_download) for file in files]
    return sum(size for size, _ in sizes), sum(size for size, is_needed in sizes if not is_needed)


def make_bar(on_progress: OnProgress) -> type[tqdm]:
    """A progress bar that draws nothing; calls `on_progress(bytes done, bytes in all)` as bytes arrive."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            self._counts_bytes = options.get("unit") == "B"
            super().__init__(*args, **{**options, "disable": False, "file": _Silent()})

        def update(self, n: float | None = 1) -> bool | None:
            drawn = super().update(n)
            if self._counts_bytes:
                on_progress(int(self.n), int(self.total or 0))
            return drawn

    return Bar


def explain(name: str, error: BaseException) -> TunesmithError | None:
    """An error of the Hub's client as one that a person understands; None for any other error."""
    if isinstance(error, DryRunError) and error.__cause__:
        error = error.__cause__
    if isinstance(error, GatedRepoError):
        return ModelGated(f"The base model {name!r} is gated.", hint=TOKEN_HINT)
    if isinstance(error, RepositoryNotFoundError):
        return ModelMissing(
            f"There is no base model {name!r} on the Hub, or it is private.",
            hint="Check the spelling (owner/name). " + TOKEN_HINT,
        )
    # Compared by class name: the HTTP library of the Hub's client differs between its versions.
    is_silent = _NO_NETWORK & {kind.__name__ for kind in type(error).__mro__}
    if is_silent or isinstance(
        error, LocalEntryNotFoundError | HfHubHTTPError | ConnectionError | DryRunError
    ):
        return HubUnreachable(
            f"The base model {name!r} is not on this machine and the Hub can't be reached.",
            hint="Check the network, or put the model's folder into the models folder and name it so.",
        )
    return None


def _ask(name: str, patterns: Sequence[str], **options: Any) -> Any:
    try:
        return snapshot_download(name, allow_patterns=list(patterns), **options)
    except Exception as error:
        if explained := explain(name, error):
            raise explained from error
        raise


class _Silent:
    """An output for the bar's drawing that discards it."""

    def write(self, _text: str) -> int:
        return 0

    def flush(self) -> None:
        pass
