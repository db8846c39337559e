"""The list of local base models, whatever their configs hold."""

import json
from pathlib import Path

import pytest

from app.core.engine.base_models import find_local
from app.core.settings import Settings


@pytest.mark.parametrize(
    "config",
    [
        "",
        "[1]",
        "[" * 100_000,
        json.dumps({"architectures": 5, "max_position_embeddings": "long"}),
        json.dumps({"architectures": {"a": 1}, "max_position_embeddings": [1]}),
        json.dumps({"architectures": [5], "max_position_embeddings": None}),
        json.dumps({"layer_types": 5}),
        json.dumps({"text_config": {"layer_types": [["full_attention"], None], "model_type": [1]}}),
    ],
)
def test_a_model_with_a_damaged_config_is_listed_by_its_name(config: str, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config)

    (found,) = find_local(Settings(data_dir=tmp_path, models_dir=tmp_path / "models"))

    assert (found.name, found.architecture, found.context_length) == ("mine", None, None)
