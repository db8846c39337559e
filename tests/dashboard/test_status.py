"""The page of the box in a real browser, over an API without a worker."""

from playwright.sync_api import Page, expect

from app.core.engine import workers
from app.core.engine.devices import DeviceState, WorkerDevice
from app.core.engine.workers import WorkerReport
from app.core.jobs import records as job_records
from app.core.settings import Settings
from app.core.storage.database import Database
from tests.api.base_models.conftest import CacheEngine, box
from tests.dashboard.browser import FAILED_REQUEST, Console, serious_faults
from tests.factories import make_job
from tests.fakes import ServerThread

__all__ = ["box"]


def test_what_grows_is_shown_and_deleted(
    server: ServerThread, settings: Settings, database: Database, page: Page, console: Console
) -> None:
    console.allowed = [FAILED_REQUEST]  # /ready says 503 without a worker
    with database.transaction() as session:
        job_id = make_job(session).id
        job_records.request_cancel(session, job_id)
    checkpoints = settings.job_folder(job_id) / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "state.pt").write_bytes(bytes(2_000_000))
    page.goto(f"{server.url}/#/status")
    expect(page.get_by_text("2.0 MB, 1 job; deleted after 90 days")).to_be_visible()
    page.get_by_role("button", name="Delete Checkpoints").click()
    expect(page.get_by_role("dialog")).to_contain_text("retried from its first step")
    assert serious_faults(page) == []
    page.get_by_label("Only what ended more than so many days ago").fill("0")
    page.get_by_role("button", name="Delete for good").click()
    expect(page.get_by_text("Deleted: 2.0 MB, 1 job.")).to_be_visible()
    assert not checkpoints.exists()
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_downloaded_base_models_are_shown_and_deleted(
    server: ServerThread, box: CacheEngine, page: Page, console: Console
) -> None:
    console.allowed = [FAILED_REQUEST]
    box.add("owner/old", days_old=40)
    box.add("owner/new")
    page.goto(f"{server.url}/#/status")
    expect(page.get_by_text("2.1 KB, 2 models; kept for ever")).to_be_visible()
    page.get_by_role("button", name="Delete Downloaded base models").click()
    expect(page.get_by_role("dialog")).to_contain_text(
        "Of models that nothing needs now: 2.1 KB, 2 models in all."
    )
    page.get_by_label("Only what was not used for so many days").fill("30")
    page.get_by_role("button", name="Delete for good").click()
    expect(page.get_by_text("Deleted: 1.0 KB, 1 model.")).to_be_visible()
    assert [path.name for path in box.cache.iterdir()] == ["models--owner--new"]


def test_every_gpu_of_a_host_is_shown_with_what_it_does(
    server: ServerThread, database: Database, page: Page, console: Console
) -> None:
    console.allowed = [FAILED_REQUEST]
    gpu = WorkerDevice(kind="cuda", name="H200", uuid="GPU-a", memory_bytes=80, free_bytes=60)
    second = {
        "index": 1,
        "uuid": "GPU-b",
        "state": DeviceState.TRAINING,
        "job": "job_1",
        "utilization_percent": 97,
    }
    devices = [gpu.model_copy(update={"state": DeviceState.SERVING}), gpu.model_copy(update=second)]
    with database.transaction() as session:
        report = WorkerReport("host-1-aaaaaa", ["train"], device={"name": "H200"}, devices=devices)
        workers.heartbeat(session, report)
    page.goto(f"{server.url}/#/status")
    expect(page.get_by_text("2 \N{MULTIPLICATION SIGN} H200")).to_be_visible()
    expect(page.get_by_text("GPU-a")).to_be_visible()
    expect(page.get_by_text("training, 97% busy, its job")).to_be_visible()
    expect(page.get_by_role("link", name="its job")).to_have_attribute("href", "#/job/job_1")
    assert serious_faults(page) == []
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
