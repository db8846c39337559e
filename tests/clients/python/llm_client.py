"""`llm`: the command's own `llm openai endpoint`, and a model named in `extra-openai-models.yaml`."""

import json
import os
import tempfile
from pathlib import Path

from calls import ANSWER, MODEL, QUESTION, URL, call, run_calls
from click.testing import CliRunner
from llm.cli import cli

FOLDER = Path(tempfile.mkdtemp())
os.environ["LLM_USER_PATH"] = str(FOLDER)

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"enum": ["Oslo", "Lima"]},
            "size": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["name", "size"],
        "additionalProperties": False,
    }
)
FUNCTIONS = """
def get_weather(city: str) -> str:
    "Get the weather of a city."
    return "It rains in " + city

def get_population(city: str) -> str:
    "Get how many people live in a city."
    return "700000"
"""


def llm(*arguments: str) -> str:
    """Run the command. Returns what it prints."""
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def endpoint_arguments(*arguments: str) -> list[str]:
    return ["openai", "endpoint", URL, "-m", MODEL, "-o", "temperature", "0", *arguments]


def endpoint(*arguments: str) -> str:
    return llm(*endpoint_arguments(*arguments))


def name_models() -> None:
    """As `llm`'s documentation says for servers that speak OpenAI's API."""
    models = [
        {
            "model_id": name,
            "model_name": MODEL,
            "api_base": URL,
            "supports_schema": True,
            "supports_tools": True,
            "responses": name == "responses",
        }
        for name in ("mine", "responses")
    ]
    (FOLDER / "extra-openai-models.yaml").write_text(json.dumps(models))


@call
def models() -> None:
    assert MODEL in llm("openai", "endpoint", URL, "--models").split()
    name_models()
    assert "mine" in llm("models")


@call
def chat() -> None:
    whole = endpoint("-o", "max_tokens", "16", "--no-stream", QUESTION)
    assert whole
    named = llm("-m", "mine", "-o", "temperature", "0", "-o", "max_tokens", "16", "--no-stream", QUESTION)
    assert named == whole
    assert llm("-c", "-o", "max_tokens", "16", "And Lima?")


@call
def stream() -> None:
    whole, streamed = (endpoint("-o", "max_tokens", "16", *more, QUESTION) for more in (["--no-stream"], []))
    assert streamed == whole


@call
def structured() -> None:
    for more in ([], ["--no-stream"]):
        assert json.loads(endpoint("--schema", SCHEMA, *more, QUESTION))["name"] in ("Oslo", "Lima")


@call
def tools() -> None:
    """One call and its result, which is the most that `--chain-limit 2` allows."""
    done = CliRunner().invoke(
        cli, endpoint_arguments("--functions", FUNCTIONS, "--td", "--chain-limit", "2", QUESTION)
    )
    assert "get_weather" in done.output, done.output


@call
def agent() -> None:
    for more in ([], ["--no-stream"]):
        assert endpoint("--functions", FUNCTIONS, *more, QUESTION).endswith(ANSWER)
    named = llm("-m", "mine", "-o", "temperature", "0", "--functions", FUNCTIONS, QUESTION)
    assert named.endswith(ANSWER)


@call
def responses_agent() -> None:
    assert endpoint("--responses", "--functions", FUNCTIONS, QUESTION).endswith(ANSWER)


@call
def responses() -> None:
    whole, streamed = (
        endpoint("--responses", "-o", "max_tokens", "16", *more, QUESTION) for more in (["--no-stream"], [])
    )
    assert whole == streamed != ""
    assert json.loads(endpoint("--responses", "--schema", SCHEMA, QUESTION))["name"] in ("Oslo", "Lima")


if __name__ == "__main__":
    run_calls()
