"""Tokenizers that lack tokens, or have more than the embedding: the same in preflight and in the job."""

import json
import shutil
from pathlib import Path

import pytest

from app.core.engine.preflight import DatasetRef, Preflight, PreflightRequest
from app.core.errors import InvalidRequest
from app.core.errors.base_models import ModelUnreadable
from app.core.jobs.events import Warn
from app.core.settings import TrainingPath
from tests.tiny_model import NAME
from tests.worker.training.conftest import MakeRequest, Reports, run_here
from worker.models.device import find_device
from worker.models.files.description import load_tokenizer
from worker.preflight.environment import PreflightEnvironment
from worker.preflight.report import run_preflight
from worker.processes.reports import Outcome, TrainingRequest

SHORT = {"max_steps": 1, "learning_rate": 1e-2}
ROWS = [{"prompt": "How do I cancel a job? " * times, "completion": "Send POST."} for times in (1, 2, 3, 4)]


@pytest.fixture
def folder(tmp_path: Path, models_folder: Path) -> Path:
    """A copy of the tiny model that a test may change."""
    return Path(shutil.copytree(models_folder / NAME, tmp_path / "models" / NAME))


@pytest.fixture
def request_of(make_request: MakeRequest, folder: Path) -> TrainingRequest:
    return make_request(rows=ROWS, training=SHORT).model_copy(update={"models_folder": folder.parent})


def preflight(request: TrainingRequest) -> Preflight:
    environment = PreflightEnvironment(
        models_folder=request.models_folder,
        artifacts_url=str(request.dataset.parent),
        cache_folder=request.dataset.parent / "cache",
        device=find_device(),
        free_bytes=64 << 30,
        is_busy=False,
        path=TrainingPath.AUTO,
    )
    size = request.dataset.stat().st_size
    dataset = DatasetRef(artifact=request.dataset.name, rows=len(ROWS), size_bytes=size)
    return run_preflight(PreflightRequest(spec=request.spec, dataset=dataset), environment)


def warnings_of(reports: Reports) -> dict[str, str]:
    return {event.code: event.message for event in reports.events(Warn)}


def change_tokenizer(folder: Path, *, added: list[str] = [], removed: tuple[str, ...] = ()) -> None:  # noqa: B006
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(added)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = {name: value for name, value in json.loads(path.read_text()).items() if name not in removed}
    path.write_text(json.dumps(settings))


def test_added_tokens_that_no_row_has_are_a_warning(request_of: TrainingRequest, folder: Path) -> None:
    change_tokenizer(folder, added=["<tool>"])

    reports, answer = run_here(request_of), preflight(request_of)

    assert reports.ended.outcome is Outcome.FINISHED, reports.ended
    told = warnings_of(reports)["tokens_without_embedding"]
    assert "rows does not have: '<tool>'" in told
    assert told in [warning.message for warning in answer.warnings]


def test_an_added_token_that_a_row_has_is_refused(request_of: TrainingRequest, folder: Path) -> None:
    change_tokenizer(folder, added=["cancel"])

    ended = run_here(request_of).ended

    assert ended.code == "invalid_request"
    assert "Line 1: The text has the token 'cancel'" in (ended.message or "")
    with pytest.raises(InvalidRequest, match="'cancel'"):
        preflight(request_of)


def test_a_tokenizer_of_another_model_is_refused(request_of: TrainingRequest, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 200}))

    ended = run_here(request_of).ended

    assert ended.code == "model_unreadable"
    assert "the base model's embedding has 200 rows" in (ended.message or "")
    with pytest.raises(ModelUnreadable, match="200 rows"):
        preflight(request_of)


@pytest.mark.parametrize("removed", [("eos_token",), ("eos_token", "pad_token", "bos_token", "unk_token")])
def test_a_tokenizer_without_special_tokens_trains(
    request_of: TrainingRequest, folder: Path, removed: tuple[str, ...]
) -> None:
    change_tokenizer(folder, removed=removed)

    reports = run_here(request_of)

    assert reports.ended.outcome is Outcome.FINISHED, reports.ended
    assert "does not learn to stop" in warnings_of(reports)["no_end_token"]
    assert "no_end_token" in [warning.code for warning in preflight(request_of).warnings]
    saved = load_tokenizer(request_of.output_folder)
    assert saved.eos_token is None
    assert (saved.pad_token is None) == (len(removed) == 4)
