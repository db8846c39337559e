from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

from app.core.settings import Settings
from tests.tiny_model import NAME
from worker.doctor.environment import examine_database, examine_folder, examine_models, examine_token
from worker.doctor.findings import FindingLevel

GOOD_TOKEN = "hf_goodgoodgood"


class Hub(BaseHTTPRequestHandler):
    """A fake Hub that accepts one token."""

    def do_GET(self) -> None:
        known = self.headers["Authorization"] == f"Bearer {GOOD_TOKEN}"
        self.send_response(200 if known and self.path == "/api/whoami-v2" else 401)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield
        server.shutdown()


def test_a_folder_with_free_space_is_ok(tmp_path: Path) -> None:
    assert examine_folder(tmp_path / "new").level in (FindingLevel.OK, FindingLevel.WARNING)


def test_a_folder_that_takes_no_files_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    finding = examine_folder(tmp_path / "file" / "data")
    assert finding.level is FindingLevel.FAILURE
    assert "Nothing can be written" in finding.text


def test_a_full_disk_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.doctor.environment._MIN_FREE_BYTES", 1 << 62)
    assert examine_folder(tmp_path).level is FindingLevel.FAILURE


def test_a_migrated_database_is_ok(settings: Settings) -> None:
    assert examine_database(settings.database_url).level is FindingLevel.OK


def test_a_database_that_is_not_there_yet_is_no_failure_and_is_not_made(tmp_path: Path) -> None:
    finding = examine_database(f"sqlite:///{tmp_path}/none.db")
    assert finding.level is FindingLevel.WARNING
    assert list(tmp_path.iterdir()) == []


def test_an_empty_database_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    finding = examine_database(f"sqlite:///{tmp_path}/empty.db")
    assert (finding.level, "another version" in finding.text) == (FindingLevel.FAILURE, True)


def test_a_database_s_password_is_not_shown() -> None:
    finding = examine_database("postgresql+psycopg://me:hunter2@127.0.0.1:9/tunesmith")
    assert finding.level is FindingLevel.FAILURE
    assert "hunter2" not in finding.sentence


def test_models_in_the_folder_are_named(settings: Settings, models_folder: Path) -> None:
    settings.models_dir = models_folder
    finding = examine_models(settings)
    assert finding.level is FindingLevel.OK
    assert NAME in finding.text


def test_no_models_is_a_warning(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert examine_models(settings).level is FindingLevel.WARNING


def test_models_of_the_hub_s_cache_are_named(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--owner--small-model").mkdir()
    assert examine_models(settings).text == "owner/small-model"


@pytest.mark.parametrize(
    ("token", "level", "said"),
    [
        (GOOD_TOKEN, FindingLevel.OK, "present and valid"),
        ("hf_wrongwrong", FindingLevel.WARNING, "does not take it"),
        ("", FindingLevel.OK, "none"),
    ],
)
def test_a_hub_token_is_tried_and_never_shown(
    hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str, level: FindingLevel, said: str
) -> None:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", token)
    finding = examine_token()
    assert finding.level is level
    assert said in finding.text
    assert not token or token not in finding.sentence


def test_a_hub_that_can_t_be_reached_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    finding = examine_token()
    assert finding.level is FindingLevel.WARNING
    assert "can't be reached" in finding.text
