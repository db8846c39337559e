"""The limits of one upload, and the errors past them."""

from dataclasses import dataclass

from app.core.errors.datasets import DatasetInvalid
from app.core.settings import Settings


@dataclass(frozen=True)
class Limits:
    """The limits of one upload, in rows and bytes."""

    max_rows: int = 1_000_000
    max_row_bytes: int = 16 << 20
    max_unpacked_bytes: int = 8 << 30

    @classmethod
    def from_settings(cls, settings: Settings) -> "Limits":
        """Returns the limits that the settings have."""
        return cls(settings.max_dataset_rows, settings.max_row_bytes, settings.max_unpacked_bytes)


def describe_bytes(count: int) -> str:
    """Returns a number of bytes for a message, such as `16 MiB`."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << power and count % (1 << power) == 0:
            return f"{count >> power} {unit}"
    return f"{count} bytes"


def too_large(limits: Limits) -> DatasetInvalid:
    """Returns the error for rows that are together over the limit."""
    return DatasetInvalid(
        f"The rows take more than {describe_bytes(limits.max_unpacked_bytes)}.",
        hint="Split the file, or raise TUNESMITH_MAX_UNPACKED_BYTES.",
    )


def too_long(limits: Limits) -> str:
    """Returns the message for a row over the limit."""
    size = describe_bytes(limits.max_row_bytes)
    return f"the row is longer than {size}. Shorten it, or raise TUNESMITH_MAX_ROW_BYTES."


def check_blank_lines(count: int, limits: Limits) -> None:
    """Raise DatasetInvalid for too many blank lines: gzip compresses them to almost nothing."""
    if count > limits.max_rows:
        raise DatasetInvalid(f"The file has more than {limits.max_rows} blank lines.", hint="Remove them.")
