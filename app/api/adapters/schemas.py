"""What the routes of adapters return. Knows no database session."""

from collections.abc import Sequence
from datetime import datetime

from pydantic import BaseModel, Field

from app.core.engine.serving import Serving, find_serving
from app.core.engine.state import EngineState
from app.core.specs.job import QuantizationSpec
from app.core.specs.states import AdapterState
from app.core.storage import tables


class AdapterErrorRead(BaseModel):
    """Why an import failed, or what it waits for."""

    code: str = Field(description="Stable, for programs.")
    message: str = Field(description="For people.")
    hint: str | None = Field(description="What to do.")


class AdapterRead(BaseModel):
    """A LoRA adapter: finished, or being imported."""

    id: str = Field(description="Names the adapter for good.", examples=["ad_4kq1v9x2m7ahc3zt"])
    name: str = Field(description="The job's name; the API takes it wherever it takes the id.")
    base_model: str = Field(description="The base model it was trained against.")
    quantization: QuantizationSpec = Field(description="How the base model's weights were quantized for it.")
    job: str | None = Field(description="Id of the job that made it.")
    job_name: str | None = Field(None, description="Name of that job.")
    dataset: str | None = Field(None, description="Id of the dataset that it read, which may be deleted.")
    step: int | None = Field(description="The step at which the job kept it; null: it is the finished one.")
    state: AdapterState = Field(
        description="`ready`: it answers. `importing`: it is being proved. `failed`: `error` says why."
    )
    error: AdapterErrorRead | None = Field(
        None, description="Of an import: why it failed, or what it waits for."
    )
    serving: Serving | None = Field(
        None, description="How the engine serves it; null: not known, as it has not been asked yet."
    )
    size_bytes: int = Field(description="Size of its files.")
    created_at: datetime = Field(description="When its job finished.")

    @classmethod
    def from_row(cls, row: tables.AdapterRow, states: Sequence[EngineState]) -> "AdapterRead":
        """The adapter as the API shows it. `states`: those of the engines."""
        return cls(
            id=row.id,
            name=row.name,
            base_model=row.base_model,
            quantization=QuantizationSpec.model_validate(row.quantization),
            job=row.job_id,
            job_name=row.job_name,
            dataset=row.dataset_id,
            step=row.step,
            state=AdapterState.READY,
            serving=_serving(row, states),
            size_bytes=row.size_bytes,
            created_at=row.created_at,
        )

    @classmethod
    def from_import(cls, row: tables.AdapterImportRow) -> "AdapterRead":
        """An import as the API shows it."""
        return cls(
            id=row.id,
            name=row.name,
            base_model=row.base_model,
            quantization=QuantizationSpec.model_validate(row.quantization),
            job=None,
            step=None,
            state=AdapterState(row.state),
            error=AdapterErrorRead.model_validate(row.error) if row.error else None,
            size_bytes=row.size_bytes,
            created_at=row.created_at,
        )


def _serving(row: tables.AdapterRow, states: Sequence[EngineState]) -> Serving | None:
    if row.general_path is None:
        return None
    return find_serving(states, row.base_model, ", ".join(row.general_path) or None)
