"""The official client, unmodified, evaluates two models of a running box and reads what came of it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.end_to_end.box import running_box
from tests.tiny_model import NAME, make_tiny_model
from tests.waiting import wait_for

pytestmark = pytest.mark.slow

OTHER = "tiny-other"
COUNTRIES = {"Norway": "Oslo", "Peru": "Lima", "Chad": "N'Djamena"}
CRITERIA: list[Any] = [
    {
        "type": "string_check",
        "name": "names it",
        "input": "{{sample.output_text}}",
        "reference": "{{item.capital}}",
        "operation": "ilike",
    },
    {
        "type": "python",
        "name": "says something",
        "source": "def grade(sample, item):\n    return float(len(sample['output_text']) > 0)",
    },
    {"type": "perplexity", "name": "likelihood", "reference": "{{item.capital}}", "pass_threshold": 1e9},
    {
        "type": "label_model",
        "name": "judged",
        "model": NAME,
        "input": [{"role": "user", "content": "Is {{sample.output_text}} {{item.capital}}?"}],
        "labels": ["yes", "no"],
        "passing_labels": ["yes", "no"],
    },
]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[openai.OpenAI]:
    """The client of a box that has two models."""
    models = tmp_path / "models"
    make_tiny_model(models)
    shutil.copytree(models / NAME, models / OTHER)
    with running_box(tmp_path, models, allow_python_graders="true", training_standby="false") as box:
        box.start_worker()
        with openai.OpenAI(base_url=f"http://127.0.0.1:{box.port}/v1", api_key="none") as client:
            yield client


def test_an_eval_runs_on_two_models_and_on_given_answers(client: openai.OpenAI) -> None:
    made = client.evals.create(
        name="capitals",
        data_source_config={
            "type": "custom",
            "item_schema": {"type": "object"},
            "include_sample_schema": True,
        },
        testing_criteria=CRITERIA,
    )
    content: Any = [{"item": {"country": country, "capital": city}} for country, city in COUNTRIES.items()]
    runs = [
        client.evals.runs.create(
            made.id,
            name=model,
            data_source={
                "type": "completions",
                "model": model,
                "source": {"type": "file_content", "content": content},
                "input_messages": {
                    "type": "template",
                    "template": [{"role": "user", "content": "What is the capital of {{item.country}}?"}],
                },
                "sampling_params": {"temperature": 0, "max_completion_tokens": 8},
            },
        )
        for model in (NAME, OTHER)
    ]
    ended = [wait_until_ended(client, made.id, run.id) for run in runs]
    assert [run.status for run in ended] == ["completed", "completed"]
    for run in ended:
        items = list(client.evals.runs.output_items.list(run.id, eval_id=made.id, limit=2))
        assert [item.datasource_item["country"] for item in items] == list(COUNTRIES)
        assert run.result_counts.total == len(COUNTRIES)
        assert run.result_counts.errored == sum(item.status == "error" for item in items)
        for item in items:
            results = {result.name: result for result in item.results}
            assert results["says something"].score == float(bool(item.sample.output))
            assert results["likelihood"].score > 1
            assert item.sample.input[-1].content.startswith("What is the capital of ")
    # Two folders with the same weights answer the same.
    texts = [
        [item.sample.output for item in client.evals.runs.output_items.list(run.id, eval_id=made.id)]
        for run in ended
    ]
    assert texts[0] == texts[1]

    given = client.evals.create(
        name="given",
        data_source_config={
            "type": "custom",
            "item_schema": {"type": "object"},
            "include_sample_schema": True,
        },
        testing_criteria=CRITERIA[:2],
    )
    answers: Any = [
        {"item": {"capital": "Oslo"}, "sample": {"output_text": "It is Oslo."}},
        {"item": {"capital": "Lima"}, "sample": {"output_text": "Cusco"}},
    ]
    source: Any = {"type": "jsonl", "source": {"type": "file_content", "content": answers}}
    run = wait_until_ended(client, given.id, client.evals.runs.create(given.id, data_source=source).id)
    assert run.status == "completed", run
    assert (run.result_counts.passed, run.result_counts.failed) == (1, 1)


def wait_until_ended(client: openai.OpenAI, eval_id: str, run_id: str) -> Any:
    def ended() -> Any:
        run = client.evals.runs.retrieve(run_id, eval_id=eval_id)
        return run if run.status in ("completed", "failed", "canceled") else None

    return wait_for(ended, "the run", timeout_seconds=120)
