"""A job's answers on its page: samples while it trains, and the evaluation at its end."""

import pytest
from playwright.sync_api import Page, expect

from app.core.jobs import events
from app.core.jobs.events import SampleAnswer, Samples
from app.core.storage.database import Database
from tests.dashboard.browser import NewPage, serious_faults
from tests.dashboard.test_jobs import make_ended, wait_until_drawn
from tests.factories import make_final_evaluation, make_job
from tests.fakes import ServerThread


def add_samples(database: Database, job_id: str) -> None:
    """The answers to two prompts at four steps; early stopping took the adapter of step 2."""
    answers = {0: ("No idea.", "I am a\nmodel."), 2: ("Send POST.", "Read it."), 4: ("Send.", "Read.")}
    entries = [
        sample_at(step, *answers[step], is_final=final)
        for step, final in ((0, False), (2, False), (4, False), (2, True))
    ]
    with database.transaction() as session:
        events.append(session, job_id, entries)


def sample_at(step: int, *answers: str, is_final: bool) -> Samples:
    prompts = ("How do I cancel a job?", "system: Be brief.\nuser: How do I read its <events>?")
    found = [
        SampleAnswer(prompt=prompt, expected="Send POST.", answer=answer, is_cut=step == 0)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return Samples(step=step, epoch=step / 4, is_final=is_final, seconds=1.5, answers=found)


@pytest.mark.parametrize("width", [390, 1280])
def test_base_model_and_adapter_are_compared_on_rows_that_were_held_out(
    server: ServerThread, database: Database, new_page: NewPage, width: int
) -> None:
    job_id = make_ended(database, "evaluated", training={"validation_split": 0.1})
    with database.transaction() as session:
        events.append(session, job_id, [make_final_evaluation(rows=7)])
    page = new_page(viewport={"width": width, "height": 900})
    page.goto(f"{server.url}/#/job/{job_id}")
    table = page.get_by_role("table", name="Base model and adapter on rows held out")
    rows = table.get_by_role("row").filter(has=page.get_by_role("cell"))
    expect(rows).to_have_count(5)
    expect(rows.first.get_by_role("cell")).to_contain_text(
        ["Send POST 1.", "model. …loss 3", "Send POST 1. as expectedloss 0.5"]
    )
    expect(page.get_by_text("7 of 7 rows", exact=True)).to_be_visible()
    wait_until_drawn(page)
    page.get_by_role("button", name="Show all 7").click()
    expect(rows).to_have_count(7)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert serious_faults(page) == []


@pytest.mark.parametrize("width", [390, 1280])
def test_answers_before_and_after_training_are_next_to_each_other(
    server: ServerThread, database: Database, new_page: NewPage, width: int
) -> None:
    job_id = make_ended(database, "sampled")
    page = new_page(viewport={"width": width, "height": 900})
    add_samples(database, job_id)
    page.goto(f"{server.url}/#/job/{job_id}")
    table = page.get_by_role("table", name="Sample answers")
    expect(table.get_by_role("cell")).to_have_count(6)
    first, second = table.get_by_role("row").filter(has=page.get_by_role("cell")).all()
    expect(page.get_by_role("heading", name="Answers before and after training")).to_be_visible()
    expect(first.get_by_role("rowheader")).to_have_text("How do I cancel a job?")
    expect(first.get_by_role("cell")).to_have_text(["Send POST.", "No idea. …", "Send POST. as expected"])
    expect(second.get_by_role("cell").nth(2)).to_have_text("Read it.")
    page.get_by_label("Answers at").select_option("step 4, epoch 1")
    expect(first.get_by_role("cell").nth(2)).to_have_text("Send.")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert serious_faults(page) == []


def test_sample_answers_of_a_job_that_runs_come_as_they_are_made(
    server: ServerThread, database: Database, page: Page
) -> None:
    with database.transaction() as session:
        job_id = make_job(session, name="waiting").id
        events.append(session, job_id, [sample_at(0, "No idea.", "Nothing.", is_final=False)])
    page.goto(f"{server.url}/#/job/{job_id}")
    cells = page.get_by_role("table", name="Sample answers").get_by_role("cell")
    expect(cells).to_have_text(["Send POST.", "No idea. …", "Send POST.", "Nothing. …"])
    with database.transaction() as session:
        events.append(session, job_id, [sample_at(2, "Send.", "Read.", is_final=False)])
    expect(cells).to_have_count(6)
    expect(page.get_by_role("columnheader", name="At step 2")).to_be_visible()
    expect(page.get_by_role("heading", name="Sample answers")).to_be_visible()
