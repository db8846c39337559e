"""Write docs/settings.md from the fields of `Settings`: `python -m docs.settings_page`."""

import enum
from pathlib import Path

from pydantic.fields import FieldInfo

from app.core.settings import Settings

PAGE = Path(__file__).with_name("settings.md")
HEAD = """\
# Settings

Every setting is an environment variable with the prefix `TUNESMITH_`: `DATA_DIR` is `TUNESMITH_DATA_DIR`. API
and worker read the same ones. In containers they go into `docker/.env` ([containers](containers.md)).

Without a prefix are `HF_TOKEN`, `HF_ENDPOINT` and `HF_HOME`: the Hub's client reads them, in the worker. The
command line has three variables of its own ([command line](cli.md)).

This page is generated: change `app/core/settings.py` and run `python -m docs.settings_page`.

| Setting | Default | Meaning |
| --- | --- | --- |
"""
_DEFAULT = "; default: "


def page() -> str:
    """The page in Markdown, one row for each field of `Settings`."""
    return HEAD + "".join(_row(name, field) for name, field in Settings.model_fields.items())


def _row(name: str, field: FieldInfo) -> str:
    meaning, _, default = (field.description or "").removesuffix(".").partition(_DEFAULT)
    return f"| `{name.upper()}` | {default or _show(field.default)} | {meaning} |\n"


def _show(value: object) -> str:
    """A default as a person would write it."""
    if value in (None, "", []):
        return "none"
    if isinstance(value, enum.Enum):
        return f"`{value.value}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int) and value >= 1 << 20 and value % (1 << 20) == 0:
        return f"{value >> 30} GiB" if value % (1 << 30) == 0 else f"{value >> 20} MiB"
    if isinstance(value, int | float):
        return f"{value:,.15g}" if value >= 10_000 else f"{value:.15g}"
    return f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(page())
