"""Objects made by hand after OpenAI's public schemas; the client's own types validate each."""

import json
from pathlib import Path
from typing import Any

from openai.types.eval_create_response import EvalCreateResponse
from openai.types.evals.run_retrieve_response import RunRetrieveResponse
from openai.types.fine_tuning import FineTuningJob

MODEL = "gpt-4o-mini-2024-07-18"
CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How do I cancel a job?"},
        {"role": "assistant", "content": "Send POST."},
    ]
}
PREFERENCE = {
    "input": {
        "messages": [{"role": "user", "content": "How do I cancel a job?"}],
        "tools": [],
        "parallel_tool_calls": True,
    },
    "preferred_output": [{"role": "assistant", "content": "Send POST."}],
    "non_preferred_output": [{"role": "assistant", "content": "No idea."}],
}
REINFORCEMENT = {
    "messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}],
    "reference_answer": "4",
}
STRING_CHECK = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_text}}",
    "reference": "{{item.reference_answer}}",
    "operation": "eq",
}
SCORE_MODEL = {
    "type": "score_model",
    "name": "helpful",
    "model": "gpt-4o-2024-08-06",
    "input": [{"role": "user", "content": "Score: {{sample.output_text}}"}],
    "range": [0, 1],
    "pass_threshold": 0.5,
}
COSINE = {
    "type": "text_similarity",
    "name": "near",
    "input": "{{sample.output_text}}",
    "reference": "{{item.reference_answer}}",
    "evaluation_metric": "cosine",
    "pass_threshold": 0.8,
}


def job(id: str = "ftjob-1", **fields: Any) -> dict[str, Any]:
    """A supervised job that succeeded."""
    found = {
        "object": "fine_tuning.job",
        "id": id,
        "created_at": 1_760_000_000,
        "model": MODEL,
        "fine_tuned_model": f"ft:{MODEL}:acme:support-bot:AbC123",
        "organization_id": "org-1",
        "result_files": ["file-results"],
        "status": "succeeded",
        "training_file": "file-train",
        "validation_file": None,
        "hyperparameters": {"n_epochs": 4, "batch_size": 8, "learning_rate_multiplier": 1.8},
        "method": {
            "type": "supervised",
            "supervised": {
                "hyperparameters": {"n_epochs": 4, "batch_size": 8, "learning_rate_multiplier": 1.8}
            },
        },
        "seed": 683058546,
        "trained_tokens": 5049,
        "error": {"code": None, "message": None, "param": None},
        "integrations": [],
        "metadata": {"team": "support"},
        **fields,
    }
    FineTuningJob.model_validate({**found, "error": None})
    return found


def dpo_job(id: str = "ftjob-2", *, beta: float | str = 0.2) -> dict[str, Any]:
    """A job of the method dpo."""
    hyperparameters = {"beta": beta, "n_epochs": 2, "batch_size": 3, "learning_rate_multiplier": 0.5}
    method = {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}
    return job(id, method=method, training_file="file-pairs", fine_tuned_model=None)


def reinforcement_job(id: str = "ftjob-3") -> dict[str, Any]:
    """A job of the method reinforcement, with its grader."""
    method = {
        "type": "reinforcement",
        "reinforcement": {"grader": STRING_CHECK, "hyperparameters": {"reasoning_effort": "medium"}},
    }
    return job(id, model="o4-mini-2025-04-16", method=method, training_file="file-rft")


def eval_definition(id: str = "eval_1", criteria: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The definition of an eval on rows of its own."""
    found = {
        "object": "eval",
        "id": id,
        "name": "Support answers",
        "created_at": 1_760_000_000,
        "metadata": {},
        "data_source_config": {"type": "custom", "schema": {"type": "object"}},
        "testing_criteria": criteria if criteria is not None else [STRING_CHECK, SCORE_MODEL, COSINE],
    }
    EvalCreateResponse.model_validate(found)
    return found


def eval_run(source: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A run of that eval, which asks for an answer to each item's question."""
    content = [{"item": {"question": "2 + 2?", "reference_answer": "4"}}]
    found = {
        "object": "eval.run",
        "id": "evalrun_1",
        "eval_id": "eval_1",
        "name": "first",
        "created_at": 1_760_000_100,
        "status": "completed",
        "model": MODEL,
        "report_url": "https://platform.openai.com/evaluations/eval_1",
        "metadata": {},
        "error": {"code": "", "message": ""},
        "per_model_usage": [],
        "per_testing_criteria_results": [],
        "result_counts": {"errored": 0, "failed": 0, "passed": 1, "total": 1},
        "data_source": {
            "type": "completions",
            "model": MODEL,
            "source": source or {"type": "file_content", "content": content},
            "input_messages": {
                "type": "template",
                "template": [{"type": "message", "role": "user", "content": "Answer: {{item.question}}"}],
            },
            "sampling_params": {"temperature": 0.5, "max_completion_tokens": 64, "reasoning_effort": "low"},
        },
        **fields,
    }
    RunRetrieveResponse.model_validate(found)
    return found


def write_json(path: Path, value: object) -> Path:
    """Write one JSON document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def write_rows(path: Path, row: dict[str, Any], count: int = 20) -> Path:
    """Write the same row several times, a line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for _number in range(count)))
    return path
