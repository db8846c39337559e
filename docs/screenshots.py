"""Make the README's screenshots anew: `python docs/screenshots.py`.

Starts API and worker in an empty folder, trains the small real model on the example dataset, and takes
pictures of the job's page while it trains and of the playground afterwards. Needs the extras `worker` and
`dev`, and Chromium.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page, expect, sync_playwright

from app.stack import Stack
from worker.models import demo_model

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
JOB = json.loads((ROOT / "examples" / "demo-job.json").read_text())
QUESTIONS = json.loads((ROOT / "examples" / "demo-questions.json").read_text())
# Rows held out, so that the chart shows two curves.
HELD_OUT = {"validation_split": 0.1, "eval_steps": 8, "logging_steps": 2}
LIVE_SHARE = 0.6  # of the steps, when the picture of the training job is taken
WAIT_MS = 600_000


def main() -> None:
    """Run the stack, train, and write the images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"), help="where base models are")
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="keep the data here; where it has an adapter, only the playground's picture is taken",
    )
    parser.add_argument("--port", type=int, default=8123, help="port of the API")
    options = parser.parse_args()
    models = options.models_dir.absolute()
    demo_model.ensure(models)
    with tempfile.TemporaryDirectory() as empty:
        environment = {"TUNESMITH_MODELS_DIR": str(models)}
        folder = options.data_dir or Path(empty)
        with Stack(port=options.port, data_dir=folder.absolute(), environment=environment) as stack:
            stack.start()
            stack.wait_until_ready()
            take_pictures(stack.url)


def take_pictures(url: str) -> None:
    """Write the images."""
    with httpx.Client(base_url=url, timeout=120) as client, sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": 1280, "height": 860}, device_scale_factor=1.5, color_scheme="light"
        )
        page.set_default_timeout(WAIT_MS)
        expect.set_options(timeout=WAIT_MS)
        adapters = client.get("/adapters").raise_for_status().json()["data"]
        adapter_id = adapters[0]["id"] if adapters else train(client, page, url)
        compare(page, f"{url}/#/playground?adapter={adapter_id}")
        browser.close()


def train(client: httpx.Client, page: Page, url: str) -> str:
    """Train the demo's adapter, and write the image of its job while it runs; returns the adapter's id."""
    job_id = submit(client)
    page.goto(f"{url}/#/job/{job_id}")
    wait_for(client, job_id, lambda job: job["progress"]["step"] >= LIVE_SHARE * total_steps(job))
    shoot(page, "dashboard")
    return str(wait_for(client, job_id, lambda job: job["state"] == "succeeded")["adapter"])


def submit(client: httpx.Client) -> str:
    """Upload the example dataset and submit the demo's job; returns the job's id."""
    with (ROOT / "examples" / "tunesmith-help.jsonl").open("rb") as file:
        dataset = client.post("/datasets", files={"file": file}).raise_for_status().json()
    job = {**JOB, "dataset": dataset["id"], "training": {**JOB["training"], **HELD_OUT}}
    return str(client.post("/jobs", json=job).raise_for_status().json()["id"])


def wait_for(client: httpx.Client, job_id: str, is_there: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Poll the job until `is_there` returns true for it; returns the job. Ends where the job fails."""
    while True:
        job: dict[str, Any] = client.get(f"/jobs/{job_id}").raise_for_status().json()
        if job["state"] == "failed":
            sys.exit(f"The job failed: {job['error']}")
        if is_there(job):
            return job
        time.sleep(1)


def total_steps(job: dict[str, Any]) -> float:
    """The job's optimizer steps; infinite until they are known."""
    return job["progress"]["total_steps"] or float("inf")


def compare(page: Page, address: str) -> None:
    """Ask the base model and the adapter one question, and write the image."""
    page.set_viewport_size({"width": 1280, "height": 940})
    page.goto(address)
    ask(page)
    page.reload()
    ask(page)  # now that both are loaded
    shoot(page, "playground")


def ask(page: Page) -> None:
    """Fill in the playground's form, and wait for both answers."""
    page.locator("#max_new_tokens").fill("56")
    page.get_by_label("Message", exact=True).fill(QUESTIONS[0])
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("button", name="Ask all").click()
    expect(page.get_by_text("tokens,")).to_have_count(2)


def shoot(page: Page, name: str) -> None:
    """Write docs/images/NAME.png."""
    page.wait_for_timeout(1_000)  # a chart draws itself within
    page.screenshot(path=IMAGES / f"{name}.png")
    print(IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()
