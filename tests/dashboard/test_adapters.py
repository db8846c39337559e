"""The pages of adapters in a real browser, over an API without a worker."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from app.core.exports.queue import ExportResult, export_queue
from app.core.exports.results import ExportedFile
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from app.core.storage.tables import ExportRow
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
    page.get_by_role("checkbox", name="q4_0").check()
    expect(page.get_by_text("About 1.6 MB.")).to_be_visible()
    page.get_by_role("checkbox", name="q8_0").uncheck()
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


def test_k_quants_are_asked_for_together_with_an_importance_matrix(
    server: ServerThread, database: Database, adapter: str, page: Page
) -> None:
    page.goto(f"{server.url}/#/adapter/{adapter}")
    matrix = page.get_by_label("Importance matrix")
    expect(page.get_by_role("checkbox", name="q4_k_m")).to_be_visible()
    expect(matrix).to_have_count(0)
    page.get_by_role("checkbox", name="q4_k_m").check()
    matrix.check()
    page.get_by_role("button", name="Export", exact=True).click()
    expect(page.locator(".export strong")).to_have_text("gguf q8_0 q4_k_m")
    with database.snapshot() as session:
        [row] = session.query(ExportRow).all()
    assert row.spec["type"] == ["q8_0", "q4_k_m"]
    assert row.spec["importance_matrix"]


def test_a_push_has_its_branch_its_tags_and_an_existing_repository(
    server: ServerThread, database: Database, adapter: str, page: Page
) -> None:
    page.goto(f"{server.url}/#/adapter/{adapter}")
    page.get_by_label("Format").select_option("hub")
    page.get_by_label("Repository", exact=True).fill("me/helper")
    page.get_by_label("Branch").fill("v2")
    page.get_by_label("Tags").fill("support, small")
    page.get_by_label("Push into a repository that exists").check()
    page.get_by_role("button", name="Export", exact=True).click()
    expect(page.locator(".export .state")).to_have_text("queued")
    with database.snapshot() as session:
        [row] = session.query(ExportRow)
    shown = {name: row.spec[name] for name in ("repository", "private", "revision", "tags", "update")}
    assert shown == {
        "repository": "me/helper",
        "private": True,
        "revision": "v2",
        "tags": ["support", "small"],
        "update": True,
    }
    assert serious_faults(page) == []


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


def test_an_alias_is_made_shared_rolled_back_and_asked(
    server: ServerThread, database: Database, page: Page, console: Console
) -> None:
    console.allowed = [FAILED_REQUEST]
    with database.transaction() as session:
        for name in ("v1", "v2"):
            make_adapter(session, id=f"ad_{name}", name=name)
    page.goto(f"{server.url}/#/adapters")
    page.get_by_role("button", name="New alias").click()
    page.get_by_label("Alias").fill("support")
    page.get_by_label("Points to").fill("v3")
    page.get_by_role("button", name="Make the alias").click()
    expect(page.get_by_role("alert")).to_contain_text("neither an adapter nor a base model 'v3'")
    page.get_by_label("Points to").fill("v1")
    page.get_by_role("button", name="Make the alias").click()
    row = page.get_by_role("table", name="Aliases").get_by_role("row").filter(has_text="support")
    expect(row).to_contain_text("v1")
    page.get_by_role("button", name="Point elsewhere: support").click()
    page.get_by_label("Trial of another").fill("v2")
    page.get_by_label("Its share, in percent").fill("20")
    assert serious_faults(page) == []
    page.get_by_role("button", name="Point it there").click()
    expect(row).to_contain_text("v1 80%, v2 20%")
    page.get_by_role("button", name="Roll back support").click()
    expect(row.get_by_role("cell").nth(1)).to_have_text("v1")
    page.goto(f"{server.url}/#/chat")
    page.get_by_label("Model 1").select_option("alias:support")
    page.goto(f"{server.url}/#/adapters")
    page.get_by_role("button", name="Delete the alias support").click()
    page.get_by_role("button", name="Delete it", exact=True).click()
    expect(page.get_by_role("table", name="Aliases")).to_have_count(0)
