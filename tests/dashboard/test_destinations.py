"""Trackers and the push to the Hub in the form and on the page of a job, in a real browser."""

import re

from playwright.sync_api import Page, expect

from app.core.storage.database import Database
from tests.dashboard.browser import FAILED_REQUEST, Console, expect_preflight, serious_faults
from tests.fakes import ServerThread
from tests.pushes import REFUSED, RUN_URL, end_push, make_pushing_job


def open_group(page: Page, title: str) -> None:
    page.locator("summary", has_text=re.compile(f"^{title}$")).click()


def test_the_form_has_trackers_and_a_repository_of_the_hub(
    server: ServerThread, page: Page, console: Console
) -> None:
    console.allowed = [FAILED_REQUEST]  # there is no engine to ask what the job would do
    page.goto(f"{server.url}/#/new?dataset=ds_1&base_model=owner/model")
    open_group(page, "Trackers")
    open_group(page, "Push to the Hub")
    expect(page.get_by_role("checkbox", name="tensorboard")).to_be_checked()
    both = ["tensorboard", "mlflow"]
    mlflow, tensorboard = (page.get_by_role("checkbox", name=name) for name in ("mlflow", "tensorboard"))
    expect_preflight(page, mlflow.check, lambda spec: spec.get("report_to") == both)
    mlflow.uncheck()
    expect_preflight(page, tensorboard.uncheck, lambda spec: spec.get("report_to") == [])
    page.get_by_role("checkbox", name="wandb").check()
    page.get_by_label("Project").fill("support")
    page.get_by_label("Name of the run").fill("first try")
    page.locator("[name='push_to_hub.repository']").fill("me/helper")
    page.get_by_label("Branch").fill("v2")
    page.locator("[name='push_to_hub.tags']").fill("support, small")
    wanted = {
        "report_to": ["wandb"],
        "tracking": {"project": "support", "run_name": "first try"},
        "push_to_hub": {
            "repository": "me/helper",
            "private": False,
            "revision": "v2",
            "tags": ["support", "small"],
        },
    }
    expect_preflight(
        page, page.get_by_label("Private", exact=True).uncheck, lambda spec: wanted.items() <= spec.items()
    )
    assert serious_faults(page) == []


def test_a_job_page_shows_runs_and_repeats_a_push_that_failed(
    server: ServerThread, database: Database, page: Page
) -> None:
    with database.transaction() as session:
        job_id = make_pushing_job(session)
        end_push(session, url=None)
    page.goto(f"{server.url}/#/job/{job_id}")
    card = page.locator("section.card", has=page.get_by_role("heading", name="Trackers and Hub"))
    expect(card.get_by_role("link", name="Open the run")).to_have_attribute("href", RUN_URL)
    expect(card).to_contain_text("MLflow lacks 3 points of the job.")
    expect(card).to_contain_text("me/helper, branch v2, private, support")
    expect(card.get_by_role("alert")).to_contain_text(REFUSED.message)
    expect(page.get_by_role("log")).to_contain_text("“Retry” of export exp_")
    assert serious_faults(page) == []

    card.get_by_role("button", name="Retry").click()

    expect(card.get_by_text("queued")).to_be_visible()
    with database.transaction() as session:
        end_push(session, url="https://huggingface.co/me/helper/tree/v2")
    link = card.get_by_role("link", name="Open on the Hub")
    expect(link).to_have_attribute("href", "https://huggingface.co/me/helper/tree/v2")


def test_a_clone_has_the_same_trackers_and_repository(
    server: ServerThread, database: Database, page: Page, console: Console
) -> None:
    console.allowed = [FAILED_REQUEST]
    with database.transaction() as session:
        job_id = make_pushing_job(session)
    page.goto(f"{server.url}/#/new?from={job_id}")
    open_group(page, "Trackers")
    open_group(page, "Push to the Hub")
    expect(page.get_by_role("checkbox", name="wandb")).to_be_checked()
    expect(page.locator("[name='push_to_hub.repository']")).to_have_value("me/helper")
    expect(page.get_by_label("Branch")).to_have_value("v2")
