"""One split of a Hub dataset as a table of records, streamed through the `datasets` library.

Repositories are untrusted: a card may name any file and any reader. The library reads only the repository's
own files; this module allows only its readers of plain tables, so that no code and no pickle is loaded.
Errors of the libraries are not caught here; worker/fetching/failures.py translates them.
"""

from collections.abc import Iterator, Mapping, Sequence

import datasets
from datasets import DatasetBuilder, IterableDataset
from huggingface_hub import HfApi

from app.core.datasets.fetches import HubSource
from app.core.datasets.problems import Record, quoted
from app.core.datasets.unused_fields import OnUnused
from app.core.errors.datasets import DatasetInvalid, HubDatasetUnfit, UnknownConfig, UnknownSplit

_READERS = ("arrow", "csv", "json", "parquet", "text")
_READER_PACKAGE = "datasets.packaged_modules."
_PLAIN_FEATURES = ("ClassLabel", "Json", "LargeList", "List", "Sequence", "Value")


class HubTable:
    """The columns of a split and its records, numbered from 1. Columns of media are not read."""

    def __init__(self, columns: list[str], split: IterableDataset, media: Mapping[str, str]) -> None:
        self.columns = columns
        self.rows_read = 0
        self._split = split
        self._media = media

    def read(self, columns: Sequence[str], presence_of: Sequence[str] = ()) -> Iterator[Record]:
        """Yield the records with these columns and those of `presence_of`, of which media are a word instead.

        Raises HubDatasetUnfit where one of `columns` holds media.
        """
        _refuse({name: self._media[name] for name in columns if name in self._media})
        wanted = [*columns, *presence_of]
        unread = {name: self._media[name] for name in wanted if name in self._media}
        for record in self._split.select_columns([name for name in wanted if name not in unread]):
            self.rows_read += 1
            yield self.rows_read, {**record, **unread}


def find_commit(source: HubSource) -> str:
    """The commit that the source's revision refers to now."""
    return str(HfApi().dataset_info(source.hub_dataset, revision=source.revision).sha)


def open_table(source: HubSource, commit: str, on_unused: OnUnused) -> HubTable:
    """Open the split that the source names, at a commit.

    Raises UnknownConfig, UnknownSplit and HubDatasetUnfit, and DatasetInvalid where the split has no rows.
    """
    try:
        splits = _find_builder(source, commit).as_streaming_dataset()
    except StopIteration:  # raised by the library where a file has no first row
        raise DatasetInvalid(f"A file of {source.hub_dataset} has no rows.") from None
    if source.split not in splits:
        raise UnknownSplit(
            f"{source.hub_dataset} has no split {source.split!r}.",
            hint=f"Its splits: {', '.join(map(str, splits))}.",
        )
    split = splits[source.split]
    # Without a schema, the columns are those of the first row.
    columns = split.column_names or list(next(iter(split), {}))
    if not columns:
        raise DatasetInvalid(f"The split {source.split!r} of {source.hub_dataset} has no rows.")
    media = {name: kind for name, found in (split.features or {}).items() if (kind := _find_media(found))}
    if on_unused is OnUnused.REFUSE:
        _refuse(media)
    return HubTable(columns, split, media)


def _find_builder(source: HubSource, commit: str) -> DatasetBuilder:
    """The builder of the configuration. `hf://` prevents a lookup on the local file system."""
    path = f"hf://datasets/{source.hub_dataset}"
    configs = datasets.get_dataset_config_names(path, revision=commit)
    if source.config not in configs and (source.config or not _has_default(configs, path, commit)):
        problem = f"has no configuration {source.config!r}" if source.config else "has several configurations"
        raise UnknownConfig(
            f"{source.hub_dataset} {problem}.", hint=f"Name one in `config`: {', '.join(configs)}."
        )
    builder = datasets.load_dataset_builder(path, source.config, revision=commit)
    _refuse_reader(builder)
    return builder


def _has_default(configs: Sequence[str], path: str, commit: str) -> bool:
    return len(configs) == 1 or datasets.get_dataset_default_config_name(path, revision=commit) is not None


def _refuse_reader(builder: DatasetBuilder) -> None:
    """Refuse readers that unpickle or that open paths named in rows. Raises HubDatasetUnfit."""
    reader = type(builder).__module__.removeprefix(_READER_PACKAGE).split(".")[0]
    if reader not in _READERS:
        raise HubDatasetUnfit(
            f"The dataset's files are of the kind {reader!r}, which has no rows of text.",
            hint="Datasets of JSON lines, JSON, CSV, Parquet, Arrow or text files can be fetched.",
        )


def _refuse(media: Mapping[str, str]) -> None:
    """Raise HubDatasetUnfit where there are columns of media; `media` has the kind of each."""
    if media:
        shown = ", ".join(f"{quoted([name])} ({kind})" for name, kind in media.items())
        raise HubDatasetUnfit(
            f"The dataset has columns that are not text: {shown}.",
            hint="Only text can be learned from yet. To train on the other columns: on_unused=ignore.",
        )


def _find_media(feature: object) -> str | None:
    """The kind of the first nested feature that is not a plain value; None where all are plain."""
    if isinstance(feature, Mapping):
        return next((kind for part in feature.values() if (kind := _find_media(part))), None)
    if isinstance(feature, list):
        return next((kind for part in feature if (kind := _find_media(part))), None)
    kind = type(feature).__name__
    if kind not in _PLAIN_FEATURES:
        return kind
    inner = getattr(feature, "feature", None)
    return _find_media(inner) if inner is not None else None
