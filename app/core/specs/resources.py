"""The devices that a job trains on, and how they share its work."""

from typing import Literal

from pydantic import Field

from app.core.specs.spec import Spec

Strategy = Literal["ddp", "fsdp"]


class ResourcesSpec(Spec):
    """The devices that a job trains on, with a process for each. Batch sizes are those of one device."""

    gpus: int = Field(
        1,
        ge=1,
        le=64,
        description="GPUs of one host that the job trains on. An optimizer step learns from "
        "per_device_train_batch_size times gradient_accumulation_steps rows on each of them.",
    )
    nodes: int = Field(
        1,
        ge=1,
        le=64,
        description="Hosts that the job trains on, on so many GPUs of each; above 1 they are nodes of a Ray "
        "cluster (TUNESMITH_RAY_ADDRESS).",
    )
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        "auto",
        description="ddp: every GPU holds the whole base model. fsdp: the GPUs divide an unquantized base "
        "model (quantization.load_in_4bit false) among them, for one that is too large for a GPU; slower. "
        "auto: fsdp where it is possible and the job does not fit a GPU otherwise, else ddp.",
    )

    @property
    def ranks(self) -> int:
        """The number of processes that train, one on each GPU."""
        return self.gpus * self.nodes
