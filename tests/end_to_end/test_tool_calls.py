"""The example of tool calls on the real small model: the adapter calls the right functions."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from examples.tool_calls import TARGET, describe, make_rows
from tests.end_to_end.box import Box, running_box

ROOT = Path(__file__).parents[2]
SPEC: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "tool-calls.yaml").read_text())
STEPS = 36  # of 72 in the example's epoch


@dataclass(frozen=True)
class Question:
    """A question that is not among the rows, the functions that are offered, and the call that it wants."""

    text: str
    offered: tuple[str, ...]
    name: str
    arguments: dict[str, Any]


QUESTIONS = [
    Question(
        "How high is the tide at the lighthouse?",
        ("get_tide", "find_boat"),
        "get_tide",
        {"place": "lighthouse"},
    ),
    Question("Where does the Petrel lie?", ("get_wind", "find_boat"), "find_boat", {"boat": "Petrel"}),
    Question(
        "Is there much wind at the east quay?",
        ("get_wind", "get_ferry"),
        "get_wind",
        {"place": "east quay"},
    ),
    Question(
        "Please book a berth for the Puffin from tomorrow for 3 nights.",
        ("find_boat", "book_berth"),
        "book_berth",
        {"boat": "Puffin", "day": "tomorrow", "nights": 3},
    ),
    Question(
        "When does a ferry go to the old harbour?",
        ("get_tide", "get_ferry", "get_wind"),
        "get_ferry",
        {"place": "old harbour"},
    ),
    Question(
        "The ladder at the west basin is damaged.",
        ("report_fault", "get_tide"),
        "report_fault",
        {"place": "west basin", "fault": "ladder"},
    ),
]


@pytest.fixture(scope="module")
def models_dir() -> Path:
    """The folder that `make demo` fills, so that the model is fetched once."""
    folder = ROOT / "data" / "models"
    subprocess.run(
        [sys.executable, "-m", "worker.models.demo_model", "--models-dir", str(folder)], check=True
    )
    return folder


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Iterator[Box]:
    with running_box(tmp_path_factory.mktemp("tools"), models_dir) as box:
        box.start_worker()
        yield box


@pytest.fixture(scope="module")
def client(box: Box) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{box.port}/v1", api_key="none", timeout=300) as client:
        yield client


def test_the_example_is_what_its_program_writes() -> None:
    rows = [json.loads(line) for line in TARGET.read_text().splitlines()]

    assert rows == list(make_rows())
    assert len(rows) >= 100
    assert not {row["messages"][0]["content"] for row in rows} & {question.text for question in QUESTIONS}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_adapter_calls_the_right_function_where_the_base_model_does_not(
    box: Box, client: openai.OpenAI
) -> None:
    training = {**SPEC["training"], "max_steps": STEPS}
    job_id = box.submit(**{**SPEC, "training": training, "dataset": box.upload(make_rows())})
    job = box.wait_for_state(job_id, "succeeded", "failed", timeout_seconds=1400)
    assert job["state"] == "succeeded", job["error"]

    of_base = [calls(ask(client, SPEC["base_model"], question)) for question in QUESTIONS]
    of_adapter = [calls(ask(client, SPEC["name"], question)) for question in QUESTIONS]

    wanted = [[(question.name, question.arguments)] for question in QUESTIONS]
    assert of_adapter == wanted
    assert not [found for found, right in zip(of_base, wanted, strict=True) if found == right]
    told = ask(client, SPEC["name"], QUESTIONS[0], '{"metres": 2.6, "trend": "rising"}')
    assert not told.tool_calls
    assert "2.6 m" in (told.content or "")


def ask(client: openai.OpenAI, model: str, question: Question, *results: str) -> Any:
    """The greedy answer to a question, or to the results of the call that it wants."""
    messages: list[Any] = [{"role": "user", "content": question.text}]
    function = {"name": question.name, "arguments": json.dumps(question.arguments)}
    for result in results:
        call = {"id": "call_1", "type": "function", "function": function}
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": "call_1", "content": result})
    tools: list[Any] = [describe(name) for name in question.offered]
    answer = client.chat.completions.create(
        model=model, messages=messages, tools=tools, temperature=0, max_tokens=60
    )
    print(model, question.text, answer.choices[0])
    return answer.choices[0].message


def calls(message: Any) -> list[tuple[str, dict[str, Any]]]:
    """The functions that an answer calls, with their arguments."""
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]
