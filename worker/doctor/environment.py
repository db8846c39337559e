"""Examines what a worker needs besides its device: data folder, database, models, Hub token."""

import shutil
import tempfile
from pathlib import Path

import httpx
from huggingface_hub import constants, get_token
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from app.core.engine import base_models
from app.core.errors.storage import DatabaseTooNew
from app.core.settings import Settings
from app.core.storage.database import Database, is_migrated, refuse_newer
from worker.doctor.findings import Finding, failure, ok, warning

_GIB = 1 << 30
_MIN_FREE_BYTES = 1 * _GIB
_LOW_FREE_BYTES = 20 * _GIB
_HUB_SECONDS = 5
_SHOWN_MODELS = 4


def examine_environment(settings: Settings) -> list[Finding]:
    """Findings on data folder, database, models folder and Hub token."""
    return [
        examine_folder(settings.data_dir),
        examine_database(settings.database_url),
        examine_models(settings),
        examine_token(),
    ]


def examine_folder(folder: Path) -> Finding:
    """Whether the data folder is writable, and its free space."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            free_bytes = shutil.disk_usage(folder).free
    except OSError as error:
        hint = "Make it writable for the user of this process: `chown`, or another TUNESMITH_DATA_DIR."
        return failure("disk", f"Nothing can be written to {folder}: {error.strerror}.", hint)
    text = f"{free_bytes / _GIB:.1f} GiB free for {folder}"
    if free_bytes < _MIN_FREE_BYTES:
        return failure("disk", text, "Delete adapters, datasets or models, or use a larger disk.")
    if free_bytes < _LOW_FREE_BYTES:
        return warning("disk", text, "Checkpoints and downloaded models may fill it.")
    return ok("disk", text)


def examine_database(url: str) -> Finding:
    """Whether the database can be reached and its schema is at this version."""
    shown = make_url(url).render_as_string(hide_password=True)
    hint = "Start the API first: it migrates. The worker must be of the same version."
    if url.startswith("sqlite") and not Path(make_url(url).database or "").is_file():
        # Connecting would create the file.
        return warning("database", f"{shown} is not there yet.", "The API makes it when it first starts.")
    try:
        database = Database(url)
    except ImportError as error:
        return failure("database", f"{shown}: {error}.", "pip install 'tunesmith[postgres]'.")
    try:
        if is_migrated(database):
            return ok("database", f"{shown}, migrated")
        refuse_newer(database)
        return failure("database", f"{shown} is at another version.", hint)
    except DatabaseTooNew as error:
        return failure("database", f"{shown}: {error.message}", error.hint or "")
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
        return failure("database", f"{shown} does not answer: {reason}", "Is it up? TUNESMITH_DATABASE_URL.")
    finally:
        database.close()


def examine_models(settings: Settings) -> Finding:
    """The base models on this machine; a Hub model is downloaded when a job first names it."""
    folder = settings.models_folder
    try:
        found = [model.name for model in base_models.find_local(settings)]
    except OSError as error:
        return failure("models", f"{folder} can't be read: {error.strerror}.", "TUNESMITH_MODELS_DIR.")
    cached = sorted(path.name for path in Path(constants.HF_HUB_CACHE).glob("models--*"))
    found += [name.removeprefix("models--").replace("--", "/") for name in cached]
    if not found:
        return warning("models", f"none in {folder} yet", "A job may name a model of the Hub.")
    more = f" and {len(found) - _SHOWN_MODELS} more" if len(found) > _SHOWN_MODELS else ""
    return ok("models", ", ".join(found[:_SHOWN_MODELS]) + more)


def examine_token() -> Finding:
    """Whether there is a Hub token and the Hub accepts it. The token is never shown."""
    token = get_token()
    if token is None:
        return ok("Hub token", "none: models that need no agreement can be used")
    if constants.HF_HUB_OFFLINE:
        return ok("Hub token", "present; HF_HUB_OFFLINE is set, so it was not tried")
    try:
        answer = httpx.get(
            f"{constants.ENDPOINT}/api/whoami-v2",
            headers={"Authorization": f"Bearer {token}"},
            timeout=_HUB_SECONDS,
        )
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return warning("Hub token", "present; the Hub can't be reached to try it")
    if answer.status_code in (401, 403):
        hint = "Make a new one at huggingface.co/settings/tokens and set HF_TOKEN."
        return warning("Hub token", "present, but the Hub does not take it", hint)
    return ok("Hub token", "present and valid" if answer.is_success else "present; the Hub could not try it")
