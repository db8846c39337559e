"""The pages of jobs that learn from preferences, in a real browser over an API without a worker."""

import re

import httpx
from playwright.sync_api import Page, expect

from app.core.jobs import events, records as job_records
from app.core.jobs.events import Evaluation, Metrics
from app.core.storage.database import Database
from tests.dashboard.browser import FAILED_REQUEST, Console
from tests.factories import jsonl, make_job
from tests.fakes import ServerThread


def test_a_job_draws_rewards_margins_and_accuracies(
    server: ServerThread, database: Database, page: Page
) -> None:
    with database.transaction() as session:
        job_id = make_job(session, method="dpo").id
        rewards = {
            "reward_chosen": 0.5,
            "reward_rejected": -0.25,
            "reward_margin": 0.75,
            "reward_accuracy": 1.0,
        }
        points = [
            Metrics(step=step, total_steps=2, epoch=step / 2, loss=0.5, log_prob_chosen=-9.0, **rewards)
            for step in (1, 2)
        ]
        events.append(session, job_id, points)
        events.append(session, job_id, [Evaluation(step=2, epoch=1, loss=0.4, reward_accuracy=0.875)])
        job_records.get(session, job_id).step = 2
        job_records.request_cancel(session, job_id)

    page.goto(f"{server.url}/#/job/{job_id}")

    drawn = page.get_by_role("img", name="Rewards.")
    expect(drawn).to_have_attribute("aria-label", re.compile("Chosen answers, reward: .*to 0.5 at step 2"))
    expect(drawn).to_have_attribute(
        "aria-label", re.compile("Rejected answers, reward: .*to -0.25 at step 2")
    )
    expect(page.get_by_role("img", name="Reward margin.")).to_have_attribute(
        "aria-label", re.compile("to 0.75 at step 2")
    )
    expect(page.get_by_role("img", name="Reward accuracy, evaluation.")).to_have_attribute(
        "aria-label", re.compile("87.5% at step 2|88% at step 2")
    )
    expect(page.get_by_role("img", name=re.compile("^Log-prob"))).to_be_visible()


def test_the_form_offers_the_settings_of_the_chosen_method(
    server: ServerThread, page: Page, console: Console
) -> None:
    console.allowed = [FAILED_REQUEST]  # there is no engine to ask what the job would do
    page.goto(f"{server.url}/#/new?dataset=ds_1&base_model=owner/model")
    rate = page.get_by_label("Learning rate", exact=True)
    expect(rate).to_have_value("0.0002")
    assert page.get_by_label("Beta").count() == 0

    page.get_by_label("Method", exact=True).select_option("dpo")

    expect(rate).to_have_value("0.00002")
    expect(page.get_by_label("Beta")).to_have_value("0.1")
    expect(page.get_by_label("Weight of good answers")).to_have_count(0)
    expect(page.locator("[name='training.packing']")).to_have_count(0)
    page.get_by_label("Beta").fill("0.3")
    page.get_by_label("Loss", exact=True).fill("sigmoid, sft")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as YAML").click()
    text = saved.value.path().read_text()
    assert "method: dpo" in text
    assert "beta: 0.3" in text
    assert "sft" in text
    assert "learning_rate" not in text

    page.get_by_label("Method", exact=True).select_option("kto")
    expect(page.get_by_label("Weight of good answers")).to_be_visible()
    expect(page.get_by_label("Loss", exact=True)).to_have_value("kto")


def test_the_form_takes_a_method_that_learns_the_dataset(
    server: ServerThread, page: Page, console: Console
) -> None:
    console.allowed = [FAILED_REQUEST]  # there is no engine to ask what the job would do
    rows = {
        "pairs": {"prompt": "q", "chosen": "a", "rejected": "b"},
        "labels": {"prompt": "q", "completion": "a", "label": True},
        "answers": {"prompt": "q", "completion": "a"},
    }
    ids = {
        name: httpx.post(f"{server.url}/datasets", files={"file": (name, jsonl([row]))}).json()["id"]
        for name, row in rows.items()
    }
    page.goto(f"{server.url}/#/new?dataset={ids['pairs']}&base_model=owner/model")
    method, dataset = page.get_by_label("Method", exact=True), page.get_by_label("Dataset", exact=True)
    expect(method).to_have_value("dpo")
    method.select_option("kto")

    for name, taken in (("labels", "kto"), ("answers", "sft"), ("pairs", "dpo")):
        dataset.select_option(ids[name])
        expect(method).to_have_value(taken)
