"""Fetching children with the real `datasets` library against a fake Hub."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from app.core.datasets import records as dataset_records
from app.core.datasets.inspection import OnProblem
from app.core.datasets.rows import AnswerComparison, Completion, Conversation, Message
from app.core.datasets.unused_fields import OnUnused
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from tests.factories import CHAT_ROW, jsonl
from tests.servers.hub import TOKEN, FakeHub, parquet
from tests.worker.fetching.conftest import Fetch

TWO_CONFIGS = b"""---
configs:
- config_name: small
  data_files: small.jsonl
- config_name: large
  data_files: large.jsonl
---
"""


def foreign_card(path: object) -> bytes:
    return f"---\nconfigs:\n- config_name: default\n  data_files: {path}\n---\n".encode()


def error_of(dataset: Any) -> dict[str, str]:
    assert dataset.state == "failed"
    assert dataset.rows == 0
    return dict(dataset.error)


def test_a_split_of_parquet_files_is_fetched_at_its_commit(
    hub: FakeHub, fetch: Fetch, store: ArtifactStore, settings: Settings
) -> None:
    files = {f"data/train-0000{n}.parquet": parquet(prompt=[f"q{n}"], completion=["a"]) for n in (0, 1)}
    repository = hub.add("me/rows", {**files, "data/test-00000.parquet": parquet(prompt=["x"])})
    dataset = fetch(revision="v1")
    assert (dataset.state, dataset.error, dataset.format) == ("ready", None, "prompt_completion")
    assert (dataset.rows, dataset.columns) == (2, ["prompt", "completion"])
    assert dataset.hub == {
        "hub_dataset": "me/rows",
        "config": None,
        "split": "train",
        "revision": "v1",
        "commit": repository.sha,
    }
    rows = list(dataset_records.open_rows(store, dataset))
    assert rows == [(1, Completion("q0", "a")), (2, Completion("q1", "a"))]
    assert list((settings.data_dir / "fetches").iterdir()) == []


def test_comparisons_are_fetched(hub: FakeHub, fetch: Fetch, store: ArtifactStore) -> None:
    """As in UltraFeedback: the prompt as text, and whole conversations."""
    asked = {"role": "user", "content": "q"}
    chosen, rejected = ([asked, {"role": "assistant", "content": text}] for text in ("good", "bad"))
    content = parquet(prompt=["q"], chosen=[chosen], rejected=[rejected], score_rejected=[3.0])
    hub.add("me/rows", {"data/train-00000.parquet": content})
    dataset = fetch()
    assert (dataset.state, dataset.error, dataset.format) == ("ready", None, "comparisons")
    assert [one["field"] for one in dataset.unused_fields] == ["score_rejected"]
    [(_, row)] = dataset_records.open_rows(store, dataset)
    assert row == AnswerComparison(
        (Message("user", "q"),), (Message("assistant", "good"),), (Message("assistant", "bad"),)
    )


def test_a_configuration_of_json_lines_is_fetched(hub: FakeHub, fetch: Fetch, store: ArtifactStore) -> None:
    files = {"small.jsonl": jsonl([CHAT_ROW]), "large.jsonl": jsonl([CHAT_ROW] * 3)}
    hub.add("me/rows", {"README.md": TWO_CONFIGS, **files})
    dataset = fetch(config="large")
    assert (dataset.state, dataset.format, dataset.rows) == ("ready", "messages", 3)
    assert all(isinstance(row, Conversation) for _, row in dataset_records.open_rows(store, dataset))


def test_columns_are_mapped_and_bad_rows_skipped_with_their_numbers(hub: FakeHub, fetch: Fetch) -> None:
    rows = [{"q": "q", "a": "a", "n": 1}, {"q": "q", "a": "", "n": 2}, {"q": "q", "a": None, "n": 3}]
    hub.add("me/rows", {"train.jsonl": jsonl(rows)})
    mapped = {"column_map": {"prompt": "q", "completion": "a"}}
    dataset = fetch(**mapped, on_problem=OnProblem.SKIP)
    assert (dataset.state, dataset.rows, dataset.problem_count) == ("ready", 1, 2)
    assert [problem["line"] for problem in dataset.problems] == [2, 3]

    refused = fetch(**mapped)
    assert error_of(refused)["code"] == "dataset_invalid"
    assert "Row 2: 'a' is empty" in error_of(refused)["message"]
    assert [problem["line"] for problem in refused.problems] == [2, 3]
    assert refused.problem_count == 2


def test_a_token_opens_what_is_private_and_gated(
    hub: FakeHub, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("me/rows", {"train.csv": b"text\nhello\n"}, is_private=True, is_gated=True)
    assert error_of(fetch())["code"] == "hub_dataset_missing"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetch().state == "ready"


@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ({"hub_dataset": "me/nothing"}, "hub_dataset_missing", "HF_TOKEN"),
        ({"hub_dataset": "me/gated"}, "hub_dataset_gated", "accept its terms"),
        ({"revision": "nowhere"}, "hub_dataset_missing", "no revision 'nowhere'"),
        ({}, "config_unknown", "`config`: small, large"),
        ({"config": "middle"}, "config_unknown", "`config`: small, large"),
        ({"config": "small", "split": "test"}, "split_unknown", "Its splits: train"),
        ({"config": "small", "column_map": {"text": "nowhere"}}, "dataset_invalid", "'nowhere'"),
    ],
)
def test_missing_datasets_revisions_and_splits_are_errors(
    hub: FakeHub, fetch: Fetch, source: dict[str, Any], code: str, said: str
) -> None:
    files = {"small.jsonl": jsonl([CHAT_ROW]), "large.jsonl": jsonl([CHAT_ROW])}
    hub.add("me/rows", {"README.md": TWO_CONFIGS, **files})
    hub.add("me/gated", {"train.csv": b"text\nhello\n"}, is_gated=True)
    error = error_of(fetch(**source))
    assert error["code"] == code
    assert said in f"{error['message']} {error['hint']}"


def test_a_hub_that_is_down_is_an_error(hub: FakeHub, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.broken_status = 503
    assert "HTTP 503" in error_of(fetch())["message"]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    error = error_of(fetch())
    assert error["code"] == "hub_unreachable"
    assert "HF_ENDPOINT" in error["hint"]


@pytest.mark.parametrize(
    ("files", "code", "said"),
    [
        ({"rows.py": b"import os"}, "hub_dataset_unreadable", "scripts are no longer supported"),
        ({"notes.xyz": b"?"}, "hub_dataset_unreadable", "data files"),
        ({"train.jsonl": b""}, "dataset_invalid", "has no rows"),
        ({"train.tar": b"\0" * 10240}, "hub_dataset_unfit", "webdataset"),
        ({"train.jsonl": b'{"text": "x"}\n{"text": '}, "hub_dataset_unreadable", "can't be read"),
        ({"train.parquet": b"PAR1 broken PAR1"}, "hub_dataset_unreadable", "can't be read"),
        ({"train.jsonl": b'{"a": "x", "b": "y"}\n'}, "dataset_invalid", "fit no known format"),
    ],
)
def test_files_that_can_not_be_used_are_refused(
    hub: FakeHub, fetch: Fetch, files: dict[str, bytes], code: str, said: str
) -> None:
    hub.add("me/rows", files)
    error = error_of(fetch())
    assert error["code"] == code, error
    assert said in error["message"]


def test_a_card_that_names_a_file_of_this_machine_is_refused(
    hub: FakeHub, fetch: Fetch, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("text\nsecret\n")
    hub.add("me/rows", {"README.md": foreign_card(secret)})
    assert "don't belong to me/rows" in error_of(fetch())["message"]


def test_a_card_that_names_another_server_is_refused(hub: FakeHub, fetch: Fetch) -> None:
    hub.add("me/other", {"train.csv": b"text\nhello\n"})
    inside = f"{hub.url}/datasets/me/other/resolve/main/train.csv"
    hub.add("me/rows", {"README.md": foreign_card(inside)})
    assert "don't belong to me/rows" in error_of(fetch())["message"]


def test_pictures_are_refused_unless_they_are_ignored(hub: FakeHub, fetch: Fetch, tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "picture": datasets.Image()})
    rows = {"text": ["hello"], "picture": [{"bytes": b"no picture", "path": None}]}
    path = tmp_path / "train.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    hub.add("me/rows", {"train.parquet": path.read_bytes()})
    error = error_of(fetch())
    assert error["code"] == "hub_dataset_unfit"
    assert "'picture' (Image)" in error["message"]
    assert "on_unused=ignore" in error["hint"]
    assert error_of(fetch(column_map={"text": "text"})) == error
    dataset = fetch(on_unused=OnUnused.IGNORE)
    assert dataset.rows == 1
    assert dataset.unused_fields == [{"field": "picture", "rows": 1, "changes_learning": True, "lines": [1]}]


def test_pictures_in_the_column_that_is_read_are_refused_always(
    hub: FakeHub, fetch: Fetch, tmp_path: Path
) -> None:
    part = {"type": datasets.Value("string"), "image": datasets.Image()}
    turn = {"role": datasets.Value("string"), "content": [part]}
    rows = {"messages": [[{"role": "user", "content": [{"type": "image", "image": None}]}]]}
    path = tmp_path / "train.parquet"
    features = datasets.Features({"messages": [turn]})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    hub.add("me/rows", {"train.parquet": path.read_bytes()})
    error = error_of(fetch(on_unused=OnUnused.IGNORE))
    assert "'messages' (Image)" in error["message"]


def test_a_split_with_tools_is_refused_with_the_sentence_of_an_upload(hub: FakeHub, fetch: Fetch) -> None:
    rows = [{"text": "one", "id": 1, "tools": [{"name": "f"}]}, {"text": "two", "id": 2, "tools": []}]
    hub.add("me/rows", {"train.jsonl": jsonl(rows)})
    failed = fetch()
    error = error_of(failed)
    assert error["code"] == "fields_unused"
    assert error["message"].startswith(
        "Nothing would be learned from 'tools' (tools) in 1 of 2 rows (row 1)."
    )
    assert [one["field"] for one in failed.unused_fields] == ["tools"]
    dataset = fetch(on_unused=OnUnused.IGNORE)
    assert [(one["field"], one["rows"]) for one in dataset.unused_fields] == [("tools", 1), ("id", 2)]


def test_the_limits_of_the_settings_hold(
    hub: FakeHub, fetch: Fetch, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("me/rows", {"train.jsonl": jsonl([{"text": "x" * 100}] * 5)})
    for name, value, said in (
        ("max_dataset_rows", 4, "more than 4 rows"),
        ("max_unpacked_bytes", 300, "more than 300 bytes"),
        ("max_row_bytes", 50, "longer than 50 bytes"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(settings, name, value)
            assert said in error_of(fetch())["message"]
