"""The official client, unmodified, against the API on a real socket; the engine behind it is scripted."""

from collections.abc import Iterator

import httpx
import openai
import pytest

from app.core.storage.database import Database
from tests.api.openai.fine_tuning_jobs import upload
from tests.factories import make_adapter
from tests.fakes import FakeEngine


@pytest.fixture(autouse=True)
def registered(engine: FakeEngine, database: Database) -> None:
    """An engine, and an adapter called `helper`."""
    engine.register(database)
    with database.transaction() as session:
        make_adapter(session)


@pytest.fixture
def openai_client(live: httpx.Client) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=str(live.base_url.join("/v1")), api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def file_id(openai_client: openai.OpenAI) -> str:
    return upload(openai_client, 12)
