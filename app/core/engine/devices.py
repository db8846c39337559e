"""What a worker reports of each of its devices: the device, its use, and how busy it is."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class DeviceState(StrEnum):
    """What a device does."""

    FREE = "free"
    TRAINING = "training"
    SERVING = "serving"
    SHARED = "training and serving"
    EXPORTING = "exporting"


class WorkerDevice(BaseModel):
    """One device of a worker's host, as of its last heartbeat."""

    model_config = ConfigDict(extra="ignore")

    kind: str = Field(description="`cuda` or `cpu`.")
    name: str = Field(description="The device's name.", examples=["NVIDIA H200"])
    index: int = Field(0, description="Its place among the devices that the worker sees.")
    uuid: str | None = Field(None, description="The driver's id of a GPU; null: a CPU, or unknown.")
    memory_bytes: int = Field(description="All of its memory.")
    supports_bf16: bool = Field(
        False, description="Whether it multiplies bfloat16 as fast as its other types."
    )
    torch_version: str | None = Field(None, description="The worker's torch.")
    matrix_rate: float | None = Field(
        None, description="Floating-point operations a second of a large matrix product; null: not measured."
    )
    state: DeviceState = Field(DeviceState.FREE, description="What it does.")
    job: str | None = Field(None, description="The job that trains on it.")
    free_bytes: int | None = Field(None, description="Free memory; null: unknown.")
    utilization_percent: int | None = Field(None, description="How busy it is; null: unknown.")
    temperature_celsius: int | None = Field(None, description="Null: unknown.")
