"""Exports of several GGUF types at once, with an importance matrix, and on a worker without the quantizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from pydantic import ValidationError

from app.core.exports.results import Threshold
from app.core.specs.export import GgufType, export_spec_adapter
from app.core.specs.states import ExportPhase
from tests.worker.exports.conftest import MakeAdapter, failed, succeeded
from worker.exports import agreement
from worker.exports.gguf import quantizer
from worker.exports.reports import Exported, ExportFailed, ExportRequest
from worker.exports.run import run

Export = Callable[..., Exported | ExportFailed]


@pytest.fixture
def installed() -> None:
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: K-quants are NOT tested")


@pytest.fixture
def phases() -> list[ExportPhase]:
    return []


@pytest.fixture
def export(
    make_request: Callable[..., ExportRequest], make_adapter: MakeAdapter, phases: list[ExportPhase]
) -> Export:
    def export_now(*, dataset: Path | None = None, **spec: Any) -> Exported | ExportFailed:
        request = make_request(make_adapter(), format="gguf", **spec).model_copy(update={"dataset": dataset})
        return run(request, lambda report: phases.append(report.phase))  # type: ignore[attr-defined]

    return export_now


@pytest.mark.usefixtures("installed")
def test_several_types_are_a_file_each_from_one_merge(export: Export, phases: list[ExportPhase]) -> None:
    ended = succeeded(export(type=["q4_k_m", "q8_0", "iq4_xs"]))

    models = {file.name: file.agreement for file in ended.files if file.name.endswith(".gguf")}
    assert set(models) == {"helper-q4_k_m.gguf", "helper-q8_0.gguf", "helper-iq4_xs.gguf"}
    assert all(found is not None and found.mismatch is None for found in models.values())
    assert ended.agreement.mean_kl == max(found.mean_kl for found in models.values() if found)
    assert phases.index(ExportPhase.CONVERTING) > phases.index(ExportPhase.MERGING)
    assert ExportPhase.MERGING not in phases[phases.index(ExportPhase.CONVERTING) :]
    # The tiny model's rows have 64 numbers.
    assert any(
        note.startswith("helper-q4_k_m.gguf: ") and "q5_0 and not q4_k" in note for note in ended.notes
    )


@pytest.mark.usefixtures("installed")
def test_a_file_below_its_threshold_is_left_out_and_told(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = Threshold(max_mean_kl=0, min_greedy_match=1, must_keep_adapter=False)
    monkeypatch.setitem(agreement._BY_TYPE, GgufType.Q3_K_M, strict)

    ended = succeeded(export(type=["q8_0", "q3_k_m"]))

    assert "helper-q3_k_m.gguf" not in {file.name for file in ended.files}
    assert not (ended.folder / "helper-q3_k_m.gguf").exists()
    assert "q3_k_m" not in (ended.folder / "Modelfile").read_text()
    assert any(note.startswith("helper-q3_k_m.gguf is not handed out: ") for note in ended.notes)
    assert "helper-q3_k_m.gguf is not handed out" in (ended.folder / "README.md").read_text()


@pytest.mark.usefixtures("installed")
def test_an_export_none_of_whose_files_agree_fails_with_the_figures(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = Threshold(max_mean_kl=0, min_greedy_match=1, must_keep_adapter=False)
    for type in (GgufType.Q3_K_M, GgufType.Q4_K_M):
        monkeypatch.setitem(agreement._BY_TYPE, type, strict)

    ended = failed(export(type=["q4_k_m", "q3_k_m"]))

    assert ended.code == "export_mismatch"
    assert ended.agreement is not None
    assert ended.agreement.mean_kl > 0


@pytest.mark.usefixtures("installed")
def test_an_importance_matrix_is_measured_on_the_adapters_rows(
    export: Export, dataset: Path, phases: list[ExportPhase]
) -> None:
    ended = succeeded(export(type="q4_k_m", importance_matrix=True, dataset=dataset))

    assert ExportPhase.MEASURING in phases
    assert any("importance matrix of 29 rows" in note for note in ended.notes)
    reader = gguf.GGUFReader(ended.folder / "helper-q4_k_m.gguf")
    assert reader.get_field("quantize.imatrix.chunks_count").contents() == 29  # type: ignore[union-attr]


@pytest.mark.usefixtures("installed")
def test_an_importance_matrix_without_rows_is_refused(export: Export) -> None:
    ended = failed(export(type="q4_k_m", importance_matrix=True))

    assert ended.code == "export_unsupported"
    assert "imported, or its dataset is gone" in ended.message


def test_without_the_quantizer_nothing_is_merged(
    export: Export, phases: list[ExportPhase], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizer, "_PACKAGE", "no_such_package")
    quantizer._load.cache_clear()
    try:
        ended = failed(export(type=["q8_0", "q4_k_m"]))
    finally:
        quantizer._load.cache_clear()

    assert ended.code == "quantizer_missing"
    assert "pip install" in (ended.hint or "")
    assert ExportPhase.MERGING not in phases


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"type": []}, "at least 1 item"),
        ({"type": ["q8_0", "q8_0"]}, "given once"),
        ({"type": ["q4_0", "q8_0"], "importance_matrix": True}, "q4_k_m"),
        ({"type": "q2_k"}, "Input should be"),
    ],
)
def test_types_that_make_no_sense_are_refused(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        export_spec_adapter.validate_python({"format": "gguf", **spec})
