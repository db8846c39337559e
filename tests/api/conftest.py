"""The API under test: in process, or on a real socket where connections matter."""

from collections.abc import Iterator

import httpx
import pytest
from fastapi.testclient import TestClient

from app.api.deps import Services
from app.core.settings import Settings
from app.main import create_app
from tests.fakes import FakeEngine, ServerThread


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.fixture
def services(client: TestClient) -> Services:
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    return services


@pytest.fixture
def live(settings: Settings) -> Iterator[httpx.Client]:
    server = ServerThread(create_app(settings))
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client
    server.stop()


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    engine = FakeEngine()
    yield engine
    engine.stop()
