"""Chat templates that never end, while others are answered, who must not notice."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.adapter_archives import zipped_folder
from tests.end_to_end.box import Box, running_box
from tests.tiny_model import NAME, make_tiny_model
from tests.worker.inference.conftest import ADAPTERS, save_adapter
from tests.worker.templates.rendering.templates import (
    ENDLESS,
    ENDLESS_CONSTANT,
    ENDLESS_FOR_WORD,
    HUGE_CONSTANT,
    WORD,
)

pytestmark = pytest.mark.slow

LOOPING_MODEL = "looping"
ROWS = [
    {"messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": content}]}
    for content in ("So.", "Like this.", WORD)
]
CODE = "template_exceeds_limits"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model; next to it is one whose template never ends."""
    model = make_tiny_model(tmp_path_factory.mktemp("box") / "models")
    looping = model.parent / LOOPING_MODEL
    shutil.copytree(model, looping)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (looping / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": ENDLESS}))
    (looping / "chat_template.jinja").write_text(ENDLESS)
    return model


@pytest.fixture(scope="module")
def box(model: Path) -> Iterator[Box]:
    with running_box(model.parents[1], model.parent) as box:
        box.start_worker()
        yield box


def send(box: Box, model: Path, folder: Path, template: str | None) -> dict[str, Any]:
    """Import an adapter with this chat template. Returns it once it is verified or refused."""
    save_adapter(model, folder, **ADAPTERS["everything"])
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return box.import_adapter(zipped_folder(folder), name=folder.name)


def answer(box: Box, adapter: dict[str, Any], content: str, seed: int = 1) -> str:
    """The answer's text, or the code of the error."""
    body = {
        "adapter": adapter["id"],
        "messages": [{"role": "user", "content": content}],
        "max_new_tokens": 20,
        "seed": seed,
    }
    response = box.client.post("/generate", json=body)
    found = response.json()
    return str(found["error"]["code"] if response.is_error else found["text"])


def test_adapters_whose_template_never_ends_harm_no_other_request(
    box: Box, model: Path, tmp_path: Path
) -> None:
    plain = send(box, model, tmp_path / "plain", None)
    word = send(box, model, tmp_path / "word", ENDLESS_FOR_WORD)
    assert (plain["state"], word["state"]) == ("ready", "ready")
    expected = [answer(box, who, "Hello", seed) for who in (plain, word) for seed in range(4)]

    with ThreadPoolExecutor(24) as pool:
        endless = [pool.submit(answer, box, word, f"{WORD} {number}") for number in range(16)]
        plain_answers = [pool.submit(answer, box, plain, "Hello", seed) for seed in [*range(4)] * 4]
        failed = pool.submit(send, box, model, tmp_path / "endless", ENDLESS).result()
        codes = {one.result() for one in endless}
        answers = [one.result() for one in plain_answers]

    assert answers == expected[:4] * 4
    assert codes <= {CODE, "queue_full"}
    assert CODE in codes
    assert (failed["state"], failed["error"]["code"]) == ("failed", CODE)
    # The same templates and conversations as before, with a word less.
    assert [answer(box, word, "Hello", seed) for seed in range(4)] == expected[4:]
    assert box.client.get("/ready").status_code == 200


def test_previews_preflights_and_jobs_whose_template_never_ends_are_refused(box: Box) -> None:
    dataset = box.upload(ROWS)
    preview = f"/datasets/{dataset}/preview"
    expected = box.get_good(box.client.get(preview, params={"base_model": NAME}))
    job = {"base_model": NAME, "dataset": dataset, "training": {"max_steps": 1}}

    with ThreadPoolExecutor(8) as pool:
        looping = pool.submit(box.client.get, preview, params={"base_model": LOOPING_MODEL})
        preflights = [
            pool.submit(box.client.post, "/jobs/preflight", json={**job, "chat_template": template})
            for template in (ENDLESS, ENDLESS_CONSTANT, HUGE_CONSTANT)
        ]
        previews = [pool.submit(box.client.get, preview, params={"base_model": NAME}) for _ in range(3)]
        refused = [one.result() for one in [looping, *preflights]]

    assert [box.get_good(one.result()) for one in previews] == [expected] * 3
    assert [(one.status_code, one.json()["error"]["code"]) for one in refused] == [(422, CODE)] * 4

    submitted = box.client.post("/jobs", json={**job, "chat_template": HUGE_CONSTANT})
    assert (submitted.status_code, submitted.json()["error"]["code"]) == (422, CODE)

    failed = box.wait_for_state(box.submit(**job, chat_template=ENDLESS_FOR_WORD), "failed")
    assert failed["error"]["code"] == CODE
    assert failed["error"]["message"].startswith("Line 3: ")
