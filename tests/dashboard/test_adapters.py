"""The pages of adapters in a real browser, over an API without a worker."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from app.core.exports.queue import ExportResult, export_queue
from app.core.exports.results import ExportedFile
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from app.main import create_app
from tests.adapter_archives import zipped
from tests.core.exports.test_queue import AGREEMENT
from tests.dashboard.browser import FAILED_REQUEST, Console, serious_faults
from tests.factories import make_adapter, make_job
from tests.fakes import ServerThread

HTML = "<img src=x onerror=\"document.title='owned'\">"
CARD = f"""---
license: apache-2.0
---
# helper

Trained with **LoRA** on `owner/model`, see [the docs](https://example.org/) {HTML}

| Figure | Value |
| --- | --- |
| loss | 0.5 |

1. one
   - inner
2. two

```python
print("<b>")
```
"""


@pytest.fixture
def server(settings: Settings) -> Iterator[ServerThread]:
    server = ServerThread(create_app(settings))
    yield server
    server.stop()


@pytest.fixture
def adapter(database: Database, settings: Settings, tmp_path: Path) -> str:
    """An adapter with a model card, whose base model is in the models folder."""
    base = settings.models_folder / "tiny"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(bytes(2_000_000))
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    with database.transaction() as session:
        job_id = make_job(session).id
        made = make_adapter(session, job_id=job_id, base_model="tiny")
        make_adapter(
            session, id="ad_1111111111111111", name="helper-3", job_id=job_id, step=3, base_model="tiny"
        )
        adapter_id, artifact = made.id, made.artifact
    ArtifactStore(settings.artifacts_url).put_folder(artifact, folder)
    return adapter_id


def finish_export(database: Database, settings: Settings, folder: Path) -> None:
    """A worker makes the oldest export."""
    (folder / "helper-q4_0.gguf").write_bytes(b"GGUF")
    with database.transaction() as session:
        lease = export_queue.claim(session, lease_seconds=30, max_attempts=3)
        assert lease is not None
        name = "helper-q4_0.gguf"
        ArtifactStore(settings.artifacts_url).put_file(f"{lease.artifact}/{name}", folder / name)
        made = ExportedFile(name=name, size_bytes=4, sha256="0" * 64)
        export_queue.finish(session, lease, ExportResult(files=[made], agreement=AGREEMENT, notes=[]))


def test_an_adapter_is_shown_exported_and_downloaded(
    server: ServerThread, database: Database, settings: Settings, adapter: str, page: Page, tmp_path: Path
) -> None:
    page.goto(f"{server.url}/#/adapters")
    page.get_by_role("link", name="helper", exact=True).click()
    expect(page.locator("h1")).to_have_text("helper")
    # The card as Markdown, its HTML as text; the other adapter of the job.
    card = page.locator(".card-text")
    expect(card.get_by_role("cell", name="0.5")).to_be_visible()
    expect(card).to_contain_text(HTML)
    expect(card.locator("pre code")).to_have_text('print("<b>")')
    expect(card.locator("ol > li > ul > li")).to_have_text("inner")
    expect(card.get_by_role("link", name="the docs")).to_have_attribute("href", "https://example.org/")
    expect(page.get_by_role("link", name="helper-3")).to_be_visible()
    page.get_by_label("Weights").select_option("q4_0")
    expect(page.get_by_text("About 563 KB.")).to_be_visible()
    page.get_by_role("button", name="Export", exact=True).click()
    expect(page.locator(".export .state")).to_have_text("queued")
    finish_export(database, settings, tmp_path)
    expect(page.get_by_text("mean divergence")).to_be_visible()
    with page.expect_download() as saved:
        page.get_by_role("button", name="helper-q4_0.gguf, 4 B").click()
    assert Path(saved.value.path()).read_bytes() == b"GGUF"
    assert serious_faults(page) == []
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert "owned" not in page.title()
    page.get_by_role("button", name="Delete the export").click()
    expect(page.locator(".export")).to_have_count(0)


def test_an_adapter_is_imported_by_a_drop(
    server: ServerThread, page: Page, console: Console, adapter: str
) -> None:
    console.allowed = [FAILED_REQUEST]
    page.goto(f"{server.url}/#/adapters")
    page.get_by_role("button", name="Import an adapter").click()
    chooser = page.locator("input[type=file]")
    files = {"name": "mine.zip", "mimeType": "application/zip"}
    chooser.set_input_files({**files, "buffer": zipped({"weights.bin": b"a pickle"})})
    expect(page.get_by_role("alert")).to_be_visible()
    assert serious_faults(page) == []
