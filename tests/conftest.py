"""Fixtures every test may use: settings in a fresh folder, and a migrated database in a real file."""

import gc
import os
import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from fastapi.dependencies import models as fastapi_dependencies

from app.core.settings import Settings
from app.core.storage.database import Database, migrate
from tests.postgres import PostgresServer, postgres_server

# The modules of tests, and the libraries that they import, are no garbage.
gc.disable()

# A busy machine is slow, and that is no failure. `make test` tries the same examples each time, so that only
# a change can fail it; `make test-all` tries others, and more.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=2_000)
hypothesis.settings.load_profile("same")

# Triton reads this when it is first imported. Without a GPU its kernels run in its interpreter.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"

# Most tests start a worker for a single job: a process that waits for the next one would only slow them down.
os.environ["TUNESMITH_TRAINING_STANDBY"] = "false"

# As the worker's children have it.
os.environ["TORCHDYNAMO_DISABLE"] = "1"


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: packed ones hold the time, and test processes would disagree on names."""
    return argname if isinstance(val, bytes) else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files of slow tests in order: those first whose tests may take longest by their timeouts.

    A long file that is started last would leave the other test processes without work.
    """
    if config.getoption("markexpr") != "slow":
        return
    seconds: Counter[Path] = Counter()
    for item in items:
        timeout = item.get_closest_marker("timeout")
        seconds[item.path] += timeout.args[0] if timeout else int(config.getini("timeout"))
    items.sort(key=lambda item: (-seconds[item.path], item.path))


def pytest_collection_finish() -> None:
    """Exclude all imported objects from garbage collection, which trainers run several times."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    """Undo the freeze: nanobind reports frozen objects as leaks at exit."""
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="module")
def forget_applications() -> Iterator[None]:
    """Clear FastAPI's caches, whose keys are functions that hold whole applications (FastAPI 0.165).

    An application is 12,000 objects. Without this a test process ends with millions of them, and each garbage
    collection of a trainer takes seconds.
    """
    yield
    for cached in vars(fastapi_dependencies).values():
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file without rows; tests copy it, which is quicker than migrating each time."""
    path = tmp_path_factory.mktemp("schema") / "tunesmith.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def settings(tmp_path: Path, empty_database: Path) -> Settings:
    """Settings whose data folder is the test's own and whose database is migrated."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "tunesmith.db").write_bytes(empty_database.read_bytes())
    # The name by which Starlette's test client asks.
    return Settings(data_dir=data_dir, allowed_hosts=["testserver"])


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings.database_url)
    yield database
    database.close()


@pytest.fixture(scope="session")
def postgres_template() -> Iterator[PostgresServer]:
    """A PostgreSQL server whose database `empty` is migrated; a test that stops it starts it again."""
    with postgres_server() as server:
        migrate(server.make_database("empty"))
        yield server


@pytest.fixture
def postgres_url(postgres_template: PostgresServer) -> Iterator[str]:
    """The URL of a migrated PostgreSQL database of the test's own."""
    name = f"test_{secrets.token_hex(6)}"
    yield postgres_template.make_database(name, template="empty")
    postgres_template.drop_database(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def each_database(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Database]:
    """A migrated database of each kind."""
    is_sqlite = request.param == "sqlite"
    database = Database(settings.database_url if is_sqlite else request.getfixturevalue("postgres_url"))
    yield database
    database.close()
