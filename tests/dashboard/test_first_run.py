"""The first run, presets and job files, in a real browser over an API without a worker."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from ruamel.yaml import YAML

from app.core.jobs import queue
from app.core.settings import Settings
from app.core.specs.job import LoraSpec, TrainingSpec
from app.core.storage.database import Database
from app.dashboard.examples import read_presets
from app.main import create_app
from tests.dashboard.browser import FAILED_REQUEST, Console
from tests.factories import make_adapter
from tests.fakes import FINISHED, FakeEngine, ServerThread

EXAMPLES = Path(__file__).parents[2] / "examples"
# The form starts with the recipe.
PRESETS = [preset for preset in read_presets() if preset["name"] != "recipe"]


@pytest.fixture
def server(settings: Settings) -> Iterator[ServerThread]:
    folder = settings.models_folder / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    server = ServerThread(create_app(settings))
    yield server
    server.stop()


@pytest.fixture
def engine(database: Database) -> Iterator[FakeEngine]:
    engine = FakeEngine()
    engine.register(database)
    yield engine
    engine.stop()


def test_an_empty_box_runs_the_example_to_a_comparing_playground(
    server: ServerThread, database: Database, engine: FakeEngine, page: Page, console: Console
) -> None:
    engine.scripts = [[FINISHED]] * 4
    page.goto(f"{server.url}/#/jobs")
    page.get_by_role("button", name="Try it with the example data").click()
    expect(page.locator("h1")).to_have_text("tunesmith-help")
    with database.transaction() as session:
        lease = queue.claim(session, "worker-1", lease_seconds=30)
        assert lease
        assert (lease.spec.base_model, lease.spec.training.num_train_epochs) == ("tiny", 4)
        make_adapter(session, job_id=lease.job_id, base_model="tiny")
        queue.succeed(session, lease, adapter_name="helper")
    expect(page.locator("h1")).to_have_text("Playground")
    expect(page.get_by_label("Message", exact=True)).to_have_value("How do I stop a running job?")
    for place in (1, 2):
        expect(page.get_by_label(f"Column {place}").get_by_text("tokens,")).to_be_visible()
    assert sorted(bool(request.adapter) for request in engine.requests) == [False, True]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset["name"])
def test_a_preset_saved_as_yaml_is_the_example(
    server: ServerThread, page: Page, console: Console, preset: dict[str, Any]
) -> None:
    console.allowed = [FAILED_REQUEST]
    page.goto(f"{server.url}/#/new")
    page.get_by_label("Preset").select_option(preset["name"])
    page.get_by_label("Name", exact=True).fill("mine")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as YAML").click()
    assert saved.value.suggested_filename == "mine.yaml"
    written = YAML(typ="safe").load(Path(saved.value.path()))
    example = YAML(typ="safe").load(EXAMPLES / f"{preset['name']}.yaml")
    assert (written.pop("name"), written.pop("base_model")) == ("mine", "tiny")
    for group, defaults in (("lora", LoraSpec()), ("training", TrainingSpec())):
        assert written[group].items() <= example[group].items()
        left_out = example[group].items() - written[group].items()
        assert left_out <= defaults.model_dump().items()  # a default need not be written


def test_a_job_file_reads_as_what_was_written(server: ServerThread, page: Page) -> None:
    page.goto(server.url)
    body = {
        "name": "yes", "base_model": "owner/model", "metadata": {"a b": "x: #1", "no": "", "line": "a\nb"},
        "lora": {"target_modules": ["q_proj", "v_proj"], "r": 4, "modules_to_save": None},
        "training": {"learning_rate": 1e-7, "max_grad_norm": 0.3, "packing": True, "eval_steps": None},
    }  # fmt: skip
    script = "async (body) => (await import('/dashboard/js/yaml.js')).toYaml(body)"
    assert YAML(typ="safe").load(io.StringIO(page.evaluate(script, body))) == body
