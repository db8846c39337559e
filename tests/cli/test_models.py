from app.core.settings import Settings
from tests.cli.conftest import Run, json_of


def test_models_are_listed(run: Run, settings: Settings) -> None:
    (settings.models_folder / "small").mkdir(parents=True)
    (settings.models_folder / "small" / "config.json").write_text("{}")
    assert "small\ton disk" in run("models").stdout
    assert [model["name"] for model in json_of(run("models", "--json"))["data"]] == ["small"]
