"""What exported files become: the nearest settings, evaluations, and reasons for what is left out."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.cli.openai_imports.files import RowKind, read_export
from app.cli.openai_imports.jobs import training_settings
from app.cli.openai_imports.objects import OpenAIHyperparameters
from app.cli.openai_imports.plan import Choices, Plan, given_base_models, make_plan
from app.core.evaluations.spec import EvaluationRequest
from app.core.graders.shapes import grader_adapter
from app.core.jobs import fine_tuning
from app.core.specs.job import JobSpec
from app.core.specs.methods import LEARNING_RATES
from tests.cli.openai_imports.exported import (
    CHAT,
    COSINE,
    MODEL,
    PREFERENCE,
    REINFORCEMENT,
    SCORE_MODEL,
    STRING_CHECK,
    dpo_job,
    eval_definition,
    eval_run,
    job,
    reinforcement_job,
    write_json,
    write_rows,
)


def plan_of(folder: Path, *base_models: str, judge: str | None = None, **files: Path) -> Plan:
    names = {name.replace("_", "-"): path for name, path in files.items()}
    choices = Choices(given_base_models(base_models or ["tiny"]), names, judge)
    return make_plan(read_export([folder]), choices)


def reasons(plan: Plan) -> dict[str, str]:
    return {one.what: one.reason for one in plan.left_out}


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (CHAT, RowKind.CHAT),
        (PREFERENCE, RowKind.PREFERENCES),
        (REINFORCEMENT, RowKind.REINFORCEMENT),
        ({"prompt": "a", "completion": "b"}, RowKind.COMPLETIONS),
        ({"item": {"question": "a"}}, RowKind.ITEMS),
    ],
)
def test_a_file_s_rows_say_what_they_are_for(tmp_path: Path, row: dict[str, Any], kind: RowKind) -> None:
    write_rows(tmp_path / "rows.jsonl", row, 3)

    (found,) = read_export([tmp_path]).rows

    assert (found.kind, found.rows) == (kind, 3)
    assert next(found.read()) == row


def test_a_supervised_job_has_the_nearest_settings(tmp_path: Path) -> None:
    write_rows(tmp_path / "file-train.jsonl", CHAT, 20)
    write_rows(tmp_path / "held-out.jsonl", CHAT, 5)
    write_json(
        tmp_path / "files.json",
        {"object": "list", "data": [{"object": "file", "id": "file-v", "filename": "held-out.jsonl"}]},
    )
    write_json(
        tmp_path / "jobs.json", {"object": "list", "data": [job(validation_file="file-v")], "has_more": False}
    )

    (planned,) = plan_of(tmp_path).jobs

    assert planned.spec == {
        "base_model": "tiny",
        "suffix": "support-bot",
        "metadata": {
            "team": "support",
            "openai_job": "ftjob-1",
            "openai_model": f"ft:{MODEL}:acme:support-bot:AbC123",
        },
        "training": {
            "num_train_epochs": 4,
            "per_device_train_batch_size": "auto",
            "gradient_accumulation_steps": 2,
            "learning_rate": 3.6e-4,
            "keep_checkpoints": 3,
            "eval_steps": 3,
            "seed": 683058546,
        },
    }
    assert planned.validation is not None
    assert planned.validation.path.name == "held-out.jsonl"
    JobSpec.model_validate({**planned.spec, "dataset": "ds_1", "validation_dataset": "ds_2"})


def test_a_job_of_the_method_dpo_has_its_beta(tmp_path: Path) -> None:
    write_rows(tmp_path / "file-pairs.jsonl", PREFERENCE)
    write_json(tmp_path / "job.json", dpo_job())

    (planned,) = plan_of(tmp_path).jobs

    assert (planned.spec["method"], planned.spec["dpo"]) == ("dpo", {"beta": 0.2})
    assert planned.spec["training"]["learning_rate"] == 1e-5
    assert planned.spec["training"]["per_device_train_batch_size"] == 3
    JobSpec.model_validate({**planned.spec, "dataset": "ds_1"})


@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize("rows", [1, 12, 100, 9000, 40_000])
@pytest.mark.parametrize("batch", ["auto", 1, 6, 16, 35])
def test_settings_are_those_of_the_openai_api_here(method: str, rows: int, batch: Any) -> None:
    chosen = {"n_epochs": "auto", "batch_size": batch, "learning_rate_multiplier": 1.8}

    found = training_settings(OpenAIHyperparameters(**chosen), method, rows=rows, is_validated=True)

    expected = fine_tuning.training_settings(
        fine_tuning.Hyperparameters(**chosen),
        {},
        base_learning_rate=LEARNING_RATES[method],
        rows=rows,
        is_validated=True,
    )
    del expected["logging_steps"]  # for the points of OpenAI's events
    assert found.pop("learning_rate") == pytest.approx(expected.pop("learning_rate"))
    assert found == expected


def test_base_models_are_chosen_by_the_longest_beginning_of_a_name(tmp_path: Path) -> None:
    write_rows(tmp_path / "file-train.jsonl", CHAT)
    models = [MODEL, "gpt-4o-2024-08-06", f"ft:{MODEL}:acme:support-bot:AbC123"]
    write_json(
        tmp_path / "jobs.json", [job(f"ftjob-{place}", model=model) for place, model in enumerate(models)]
    )

    plan = plan_of(tmp_path, "other", "gpt-4o=large", "gpt-4o-mini=small")

    assert [one.spec["base_model"] for one in plan.jobs] == ["small", "large", "small"]
    assert plan.jobs[2].continues == models[2]
    assert "continue_from" in plan.jobs[2].notes[0]
    assert plan_of(tmp_path, "gpt-4o-mini=small").unmapped == ["gpt-4o-2024-08-06"]


def test_what_can_not_be_moved_is_named_with_the_reason(tmp_path: Path) -> None:
    write_rows(tmp_path / "file-train.jsonl", CHAT)
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a/b"}}]}]
    write_rows(tmp_path / "file-pictures.jsonl", {"messages": picture + CHAT["messages"][2:]})
    write_rows(
        tmp_path / "batch.jsonl", {"custom_id": "one", "method": "POST", "url": "/v1/responses", "body": {}}
    )
    (tmp_path / "broken.jsonl").write_text('{"messages": [')
    write_json(
        tmp_path / "jobs.json",
        [
            job("ftjob-1", training_file="file-gone"),
            job("ftjob-2", status="failed", error={"code": "invalid", "message": "Bad file.", "param": None}),
            job("ftjob-3", training_file="file-pictures"),
            dpo_job("ftjob-4") | {"training_file": "file-train"},
            job("ftjob-5", integrations=[{"type": "wandb", "wandb": {"project": "p"}}]),
        ],
    )
    write_json(tmp_path / "checkpoint.json", {"object": "fine_tuning.job.checkpoint", "id": "ftckpt_1"})

    plan = plan_of(tmp_path)

    found = reasons(plan)
    assert "--file file-gone=PATH" in found["the job ftjob-1"]
    assert found["the job ftjob-2"] == "it failed at OpenAI: Bad file."
    assert "pictures or sound" in found["the job ftjob-3"]
    assert "another form" in found["the job ftjob-4"]
    assert "pictures or sound" in found[str(tmp_path / "file-pictures.jsonl")]
    assert "Batch API" in found[f"{tmp_path / 'batch.jsonl'}: one"]
    assert "not JSON" in found[str(tmp_path / "broken.jsonl")]
    assert "stay with OpenAI" in found[f"{tmp_path / 'checkpoint.json'}: ftckpt_1"]
    assert [one.source for one in plan.jobs] == ["ftjob-5"]
    assert "wandb" in plan.jobs[0].notes[0]


def test_a_reinforcement_job_is_left_out_and_its_grader_makes_an_evaluation(tmp_path: Path) -> None:
    write_rows(tmp_path / "file-rft.jsonl", REINFORCEMENT, 3)
    write_json(tmp_path / "job.json", reinforcement_job())

    plan = plan_of(tmp_path)

    assert "reinforcement" in reasons(plan)["the job ftjob-3"]
    (evaluation,) = plan.evaluations
    assert evaluation.body["graders"] == [STRING_CHECK]
    assert [one["role"] for one in evaluation.body["rows"][0]["messages"]] == ["system", "user"]
    assert evaluation.body["rows"][0]["reference_answer"] == "4"
    EvaluationRequest.model_validate(evaluation.body)


def test_an_eval_and_its_run_make_an_evaluation(tmp_path: Path) -> None:
    write_json(tmp_path / "eval.json", eval_definition())
    write_json(tmp_path / "runs.json", {"object": "list", "data": [eval_run()]})

    (found,) = plan_of(tmp_path, judge="judge").evaluations

    assert found.body == {
        "name": "Support answers",
        "models": ["tiny"],
        "graders": [STRING_CHECK, {**SCORE_MODEL, "model": "judge"}],
        "input": [{"role": "user", "content": "Answer: {{item.question}}"}],
        "sampling": {"temperature": 0.5, "max_new_tokens": 64},
        "rows": [{"question": "2 + 2?", "reference_answer": "4"}],
    }
    EvaluationRequest.model_validate(found.body)
    assert any("cosine" in text for text in found.notes)
    assert any("reasoning_effort" in text for text in found.notes)


def test_the_rows_of_a_run_may_be_in_a_file(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "items.jsonl", {"item": {"question": "2 + 2?", "reference_answer": "4"}}, 4)
    write_json(tmp_path / "eval.json", eval_definition())
    write_json(tmp_path / "run.json", eval_run({"type": "file_id", "id": "file-items"}))

    assert "--file file-items=PATH" in reasons(plan_of(tmp_path))["the eval Support answers"]
    (found,) = plan_of(tmp_path, file_items=rows).evaluations
    assert len(found.body["rows"]) == 4


@pytest.mark.parametrize(
    ("run", "criteria", "reason"),
    [
        (None, None, "/v1/evals/{id}/runs"),
        (eval_run({"type": "stored_completions"}), None, "OpenAI stores"),
        (eval_run(), [COSINE], "none of its graders"),
    ],
    ids=["no run", "stored at OpenAI", "no grader"],
)
def test_an_eval_that_can_not_be_repeated_is_left_out(
    tmp_path: Path, run: dict[str, Any] | None, criteria: list[dict[str, Any]] | None, reason: str
) -> None:
    write_json(tmp_path / "eval.json", eval_definition(criteria=criteria))
    if run:
        write_json(tmp_path / "run.json", run)

    plan = plan_of(tmp_path)

    assert plan.evaluations == []
    assert reason in reasons(plan)["the eval Support answers"]


def test_graders_alone_lose_what_only_openai_knows(tmp_path: Path) -> None:
    multi = {"type": "multi", "name": "both", "graders": {"a": STRING_CHECK}, "calculate_output": "a"}
    write_json(tmp_path / "graders.json", [{**STRING_CHECK, "id": "x"}, {"grader": multi}, COSINE])

    plan = plan_of(tmp_path)

    assert plan.graders == {"exact": STRING_CHECK, "both": multi}
    assert [grader_adapter.validate_python(one).type for one in plan.graders.values()] == [
        "string_check",
        "multi",
    ]
    assert "cosine" in reasons(plan)["the grader near"]


def test_objects_may_be_a_line_each(tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text("\n".join(json.dumps(job(f"ftjob-{place}")) for place in range(3)))

    assert len(read_export([tmp_path / "jobs.jsonl"]).jobs) == 3
