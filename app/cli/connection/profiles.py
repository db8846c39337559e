"""Where the API is and which key it needs: from options, then the environment, then a profile in a file.

The file is `tunesmith/config.toml` in the configuration folder of the user, readable by the user alone.
"""

import contextlib
import json
import os
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

from app.cli.failures import UsageProblem
from app.stack import DEFAULT_HOST, DEFAULT_PORT, find_url

DEFAULT_URL = find_url(DEFAULT_HOST, DEFAULT_PORT)
DEFAULT_PROFILE = "default"


@dataclass(frozen=True)
class Connection:
    """An API's address, and the key that every request carries."""

    url: str = DEFAULT_URL
    api_key: str | None = None


def config_path() -> Path:
    """The profile file."""
    folder = os.environ.get("XDG_CONFIG_HOME")
    return (Path(folder) if folder else Path.home() / ".config") / "tunesmith" / "config.toml"


def find_connection(url: str | None, api_key: str | None, profile: str | None) -> Connection:
    """The given address and key, else the profile's. Raises UsageProblem for an unknown profile."""
    profiles = read_profiles()
    if profile and profile not in profiles:
        known = ", ".join(profiles) or "none yet"
        raise UsageProblem(
            f"There is no profile {profile!r} in {config_path()}.",
            hint=f"Known: {known}. `tunesmith --profile {profile} login` makes it.",
        )
    saved = profiles.get(profile or DEFAULT_PROFILE) or Connection(_find_local_url())
    wanted = _clean(url) if url else saved.url
    if api_key is None and wanted == saved.url:
        # A saved key is sent to its own API alone: another address may be anybody's.
        api_key = saved.api_key
    return Connection(wanted, api_key or None)


def read_profiles() -> dict[str, Connection]:
    """Every profile by its name. Raises UsageProblem where the file can't be read."""
    path = config_path()
    try:
        tables = tomllib.loads(path.read_text())
        return {name: _connection(fields) for name, fields in tables.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageProblem(
            f"{path} can't be read: {error}", hint="Mend it, or remove it and run `tunesmith login`."
        ) from None


def write_profile(name: str, connection: Connection) -> Path:
    """Add a profile to the file, which only its owner can read from the start. Returns the file's path."""
    path = config_path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    profiles = {**read_profiles(), name: connection}
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # made with mode 0600
    try:
        with os.fdopen(handle, "w") as file:
            file.write("\n".join(_table(name, saved) for name, saved in profiles.items()))
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise
    return path


def _find_local_url() -> str:
    """The address at which `tunesmith up` would run the API in this environment."""
    host = os.environ.get("TUNESMITH_HOST") or DEFAULT_HOST
    return find_url(host, os.environ.get("TUNESMITH_PORT") or DEFAULT_PORT)


def _connection(fields: dict[str, str]) -> Connection:
    unknown = set(fields) - {"url", "api_key"}
    if unknown:
        raise ValueError(f"there is no setting {sorted(unknown)[0]}; known: url, api_key")
    return Connection(_clean(fields.get("url", DEFAULT_URL)), fields.get("api_key"))


def _clean(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise UsageProblem(
            f"{url!r} is not the address of an API.",
            hint=f"It begins with http:// or https://: {DEFAULT_URL}",
        )
    return url.rstrip("/")


def _table(name: str, connection: Connection) -> str:
    # A JSON string is a TOML string too.
    lines = [f"[{json.dumps(name)}]", f"url = {json.dumps(connection.url)}"]
    if connection.api_key:
        lines.append(f"api_key = {json.dumps(connection.api_key)}")
    return "\n".join(lines) + "\n"
