"""Jobs that can't be trained: the preflight raises what the job would fail with."""

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from app.core.datasets.rows import Completion, Row
from app.core.engine.messages import ServingPath
from app.core.engine.preflight import CheckRequest
from app.core.errors import InvalidRequest
from app.core.errors.base_models import ModelUnreadable
from app.core.errors.datasets import DatasetNotFound
from app.core.errors.jobs import BadTarget, NothingToLearn
from tests.tiny_model import NAME
from tests.worker.preflight.conftest import Ask, Store, chat, make_training_request, with_model
from worker.preflight.environment import PreflightEnvironment
from worker.preflight.report import check_spec, run_preflight
from worker.training.run import run


def test_a_validation_dataset_that_teaches_nothing_is_named(
    ask: Ask, environment: PreflightEnvironment, store: Store
) -> None:
    lost = store([Completion("word " * 60, "lost")], "validation")
    request = ask(training={"max_seq_length": 64}).model_copy(update={"validation_dataset": lost})

    with pytest.raises(NothingToLearn, match="validation dataset"):
        run_preflight(request, environment)


@pytest.mark.parametrize(
    ("rows", "spec", "error"),
    [
        (None, {"lora": {"target_modules": ["nothing"]}}, BadTarget),
        ([Completion("word " * 60, "lost")], {"training": {"max_seq_length": 16}}, NothingToLearn),
        ([chat("one")], {"training": {"validation_split": 0.5}}, NothingToLearn),
        (None, {"training": {"fp16": True}}, InvalidRequest),
    ],
)
def test_what_the_job_would_fail_with_is_raised(
    ask: Ask,
    environment: PreflightEnvironment,
    rows: list[Row] | None,
    spec: dict[str, Any],
    error: type[Exception],
) -> None:
    with pytest.raises(error):
        run_preflight(ask(rows, **spec), environment)


def test_weights_that_are_missing_are_named_before_rows_are_read(
    ask: Ask, environment: PreflightEnvironment, tmp_path: Path, models_folder: Path
) -> None:
    """At submission, in a preflight, and by the job itself; the row has nothing to learn."""
    file = shutil.copytree(models_folder / NAME, tmp_path / "models" / NAME) / "model.safetensors"
    weights = load_file(file)
    del weights["model.norm.weight"]
    save_file(weights, file, {"format": "pt"})
    environment = environment.model_copy(update={"models_folder": tmp_path / "models"})
    request = ask([Completion("word " * 60, "lost")], training={"max_seq_length": 16})

    with pytest.raises(ModelUnreadable, match=r"they lack model\.norm\.weight"):
        check_spec(CheckRequest(spec=request.spec), environment)
    with pytest.raises(ModelUnreadable, match=r"they lack model\.norm\.weight"):
        run_preflight(request, environment)
    ended = run(make_training_request(request, environment, tmp_path), lambda report: None, threading.Event())
    assert ended.code == "model_unreadable"


def test_a_dataset_without_its_file_is_not_found(
    ask: Ask, environment: PreflightEnvironment, store: Store, tmp_path: Path
) -> None:
    request = ask()
    (tmp_path / request.dataset.artifact).unlink()

    with pytest.raises(DatasetNotFound):
        run_preflight(request, environment)


def test_packing_that_lets_rows_read_each_other_is_refused(
    environment: PreflightEnvironment, ask: Ask, tmp_path: Path, models_folder: Path
) -> None:
    environment = with_model(environment, models_folder, tmp_path / "models", "mamba", "MambaForCausalLM")

    with pytest.raises(InvalidRequest, match="would read each other"):
        run_preflight(ask(training={"packing": True, "max_seq_length": 64}), environment)
    assert run_preflight(ask(), environment).serving.path is ServingPath.GENERAL
