"""Odd requests for answers and odd adapters, while others are answered, who must not notice."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.adapter_archives import zipped_folder
from tests.end_to_end.box import Box, running_box
from tests.tiny_model import NAME
from tests.worker.inference.conftest import ADAPTERS, save_adapter

pytestmark = pytest.mark.slow

# Python writes infinity and not-a-number into JSON by names that JSON does not have.
ODD: list[dict[str, Any]] = [
    *({"temperature": value} for value in (1e-45, 1e-40, 1.2e-38, 1e-6, -0.0, 1e308, 10**400, float("nan"))),
    *({"repetition_penalty": value} for value in (1e-30, 1e-9, 0.01, 10, 1e308, float("inf"))),
    *({"top_p": value} for value in (5e-324, 1e-45, 0, -1)),
    *({"min_p": value} for value in (5e-324, 1, 2)),
    *({"top_k": value} for value in (1, 2**63 - 1, 2**63, 2**64, 10**400, 1e300, -1)),
    *({"seed": value} for value in (2**63 - 1, 2**63, -1, 10**400)),
    *(
        {"logit_bias": value}
        for value in ({"5": 100}, {"5": -100}, {str(10**30): 100}, {"-1": 1}, {"5": 1e300})
    ),
    *({"logit_bias": dict.fromkeys(map(str, range(count)), -100)} for count in (290, 300, 301)),
    *({"presence_penalty": -2, "frequency_penalty": value} for value in (2, -2, 1e300)),
    *({"max_new_tokens": value} for value in (0, 1, 2**63, 10**400)),
    *({"n": value} for value in (0, 129, 10**400)),
    *({"logprobs": value} for value in (0, 20, 21, 10**400)),
    *(
        {"stop": value}
        for value in (["a" * 10_000] * 16, ["ab" * 5_000] * 16, ["a" * 10_001], ["x"] * 17, [""])
    ),
    {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"pattern": "^(a|b)*a(a|b){200}$"}},
        }
    },
]
BYSTANDERS = [
    {"prompt": f"Say {seed}", "seed": seed, "temperature": 1.0, "max_new_tokens": 60} for seed in range(4)
]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with running_box(tmp_path) as box:
        box.start_worker()
        yield box


def ask(box: Box, **body: Any) -> str:
    return str(box.get_good(box.client.post("/generate", json=body))["text"])


def status(box: Box, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    response = box.client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    return response.status_code, body


def odd_folders(box_folder: Path) -> Iterator[Path]:
    """Adapters that would freeze the engine, or spoil the answers of others in a batch."""
    model = box_folder / "models" / NAME
    for setting in ("alpha_pattern", "rank_pattern"):
        folder = save_adapter(model, box_folder / setting, **ADAPTERS["attention"])
        configure(folder, **{setting: {"(.+)+x": 4}})
        yield folder
    folder = save_adapter(model, box_folder / "modules", **ADAPTERS["attention"])
    configure(folder, modules_to_save=["(.+)+x"])
    yield folder
    folder = save_adapter(model, box_folder / "overflow", **ADAPTERS["attention"])
    configure(folder, lora_alpha=1e38)
    yield folder
    folder = save_adapter(model, box_folder / "large", **ADAPTERS["attention"])
    weights = {
        name: tensor * 1e30 for name, tensor in load_file(folder / "adapter_model.safetensors").items()
    }
    save_file(weights, folder / "adapter_model.safetensors")
    yield folder
    folder = save_adapter(model, box_folder / "rank", **ADAPTERS["attention"])
    weights = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_A" in name)
    weights[name] = torch.ones(3000, weights[name].shape[1])
    other = name.replace("lora_A", "lora_B")
    weights[other] = torch.ones(weights[other].shape[0], 3000)
    save_file(weights, folder / "adapter_model.safetensors")
    yield folder


def configure(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_bystanders_get_the_same_answers_beside_odd_requests_and_adapters(box: Box, tmp_path: Path) -> None:
    good = save_adapter(tmp_path / "models" / NAME, tmp_path / "good", **ADAPTERS["everything"])
    adapter = box.import_adapter(zipped_folder(good))
    who = [{**body, "adapter": adapter["id"]} for body in BYSTANDERS]
    expected = [ask(box, **body) for body in who]

    with ThreadPoolExecutor(16) as pool:
        odd = [
            pool.submit(status, box, path, {**body, "prompt": "a" * 9, **one})
            for path, body in (
                ("/generate", {"adapter": adapter["id"], "max_new_tokens": 20}),
                ("/v1/completions", {"model": adapter["name"], "max_tokens": 20}),
            )
            for one in ODD
        ]
        answers = [pool.submit(ask, box, **body) for body in who * 6]
        uploads = [
            pool.submit(box.import_adapter, zipped_folder(folder), name=folder.name)
            for folder in odd_folders(tmp_path)
        ]
        refused = [
            (code, body) for code, body in (one.result() for one in odd) if code not in (200, 400, 422)
        ]
        imported = [one.result() for one in uploads]

    assert refused == []
    assert [one.result() for one in answers] == expected * 6
    codes = [one["error"]["code"] for one in imported if one["state"] in ("refused", "failed")]
    assert codes == ["adapter_invalid"] * 4 + ["scores_not_finite", "adapter_unsupported"]
    assert box.client.get("/ready").status_code == 200
