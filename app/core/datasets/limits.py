"""What one upload may take, and what is said of one that takes more."""

from dataclasses import dataclass

from app.core.errors.datasets import DatasetInvalid
from app.core.settings import Settings


@dataclass(frozen=True)
class Limits:
    """What one upload may take."""

    max_rows: int = 1_000_000
    max_row_bytes: int = 16 << 20
    max_unpacked_bytes: int = 8 << 30

    @classmethod
    def from_settings(cls, settings: Settings) -> "Limits":
        """The limits this installation has set."""
        return cls(settings.max_dataset_rows, settings.max_row_bytes, settings.max_unpacked_bytes)


def describe_bytes(count: int) -> str:
    """A limit for a message: `16 MiB`."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << power and count % (1 << power) == 0:
            return f"{count >> power} {unit}"
    return f"{count} bytes"


def too_large(limits: Limits) -> DatasetInvalid:
    """What to raise where all rows together are past the limit."""
    return DatasetInvalid(
        f"The rows take more than {describe_bytes(limits.max_unpacked_bytes)}.",
        hint="Split the file, or raise TUNESMITH_MAX_UNPACKED_BYTES.",
    )


def too_long(limits: Limits) -> str:
    """What is said of a row past the limit."""
    size = describe_bytes(limits.max_row_bytes)
    return f"the row is longer than {size}. Shorten it, or raise TUNESMITH_MAX_ROW_BYTES."


def check_blank_lines(count: int, limits: Limits) -> None:
    """Raise DatasetInvalid past the limit of rows: a packed file can hold blank lines without end."""
    if count > limits.max_rows:
        raise DatasetInvalid(f"The file has more than {limits.max_rows} blank lines.", hint="Remove them.")
