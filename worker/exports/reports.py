"""The messages between the worker and an exporting child: JSON lines over two pipes. Knows no torch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from app.core.exports.results import Agreement, ExportedFile
from app.core.specs.export import ExportSpec
from app.core.specs.job import QuantizationSpec
from app.core.specs.states import ExportPhase
from worker.processes.reports import FailureReport, ProcessMessage


class ExportRequest(ProcessMessage):
    """The worker's request to an exporting child."""

    spec: ExportSpec
    adapter_id: str
    adapter_name: str
    adapter_folder: Path
    base_model: str
    quantization: QuantizationSpec
    models_folder: Path
    dataset: Path | None = Field(None, description="Rows that the adapter was trained on, for prompts.")
    llm_compressor: Path | None = Field(
        None, description="The Python interpreter that has llm-compressor; None: the worker's own."
    )
    gpu: str | None = Field(
        None,
        description="The GPU that llm-compressor may use, as CUDA_VISIBLE_DEVICES takes it; None: none.",
    )
    folder: Path = Field(description="The attempt's own folder, empty now; removed after it.")
    merged: Path = Field(description="Where a complete merged model is kept between attempts.")

    @property
    def merge_record(self) -> Path:
        """The file that identifies the inputs of the merged model."""
        return self.merged.with_suffix(".json")


class Exporting(ProcessMessage):
    """The export's phase and progress."""

    type: Literal["exporting"] = "exporting"
    phase: ExportPhase
    progress: float = Field(0.0, description="Of this phase, from 0 to 1.")


class Exported(ProcessMessage):
    """The files are complete and verified. The child's last report."""

    type: Literal["exported"] = "exported"
    folder: Path = Field(description="Where they are.")
    files: list[ExportedFile]
    agreement: Agreement
    notes: list[str]
    url: str | None = Field(None, description="Where they were pushed to.")


class ExportFailed(FailureReport):
    """The export failed and has no files. The child's last report."""

    agreement: Agreement | None = None


ExportReport = Annotated[Exporting | Exported | ExportFailed, Field(discriminator="type")]
export_report_adapter: TypeAdapter[ExportReport] = TypeAdapter(ExportReport)
