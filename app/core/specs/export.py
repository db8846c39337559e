"""What an export request may contain: a format and its options. Knows no database and no torch."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from app.core.specs.patterns import HUB_NAME


class BaseWeights(StrEnum):
    """Which base weights an adapter is merged into."""

    ORIGINAL = "original"
    DEQUANTIZED = "dequantized"


class GgufType(StrEnum):
    """The types of weights that the `gguf` package writes."""

    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q5_1 = "q5_1"
    Q5_0 = "q5_0"
    Q4_1 = "q4_1"
    Q4_0 = "q4_0"


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AdapterArchive(_Spec):
    """The PEFT folder as one archive."""

    format: Literal["adapter"]
    archive: Literal["zip", "tar"] = Field("zip", description="Kind of archive.")


class _Merging(_Spec):
    base: BaseWeights = Field(
        BaseWeights.DEQUANTIZED,
        description="`dequantized`: the base weights as they are after their trip through 4 bits, which is "
        "what the adapter was trained against and what this box serves. `original`: the base model's own "
        "weights, which are nearer to the base model and a little away from what was trained. The same for "
        "an adapter that was trained without 4 bits.",
    )


class _Sharded(_Merging):
    dtype: Literal["auto", "bfloat16", "float16"] = Field(
        "auto", description="Type of the weights. auto: the base model's, bfloat16 where that is not 16-bit."
    )
    max_shard_bytes: int = Field(
        5_000_000_000, ge=1_000_000, le=50_000_000_000, description="Size at which a new file begins."
    )


class MergedSpec(_Sharded):
    """A whole model in safetensors."""

    format: Literal["merged"]


class PytorchBinSpec(_Sharded):
    """A whole model as `pytorch_model*.bin`: pickles, for programs that read nothing else."""

    format: Literal["pytorch_bin"]


class GgufSpec(_Merging):
    """A whole model in one GGUF file, with its tokenizer and chat template."""

    format: Literal["gguf"]
    type: GgufType = Field(GgufType.Q8_0, description="Type of the weights.")


class GgufLoraSpec(_Spec):
    """The adapter alone, for `--lora` of llama.cpp."""

    format: Literal["gguf_lora"]
    type: Literal["f16", "f32"] = Field("f16", description="Type of the weights.")
    with_base: bool = Field(
        False, description="Also a GGUF file of the base weights that the adapter was trained against."
    )


class HubSpec(_Sharded):
    """A repository on the Hub, made and filled."""

    format: Literal["hub"]
    repository: str = Field(
        pattern=HUB_NAME, max_length=96, description="owner/name.", examples=["me/support-bot"]
    )
    content: Literal["adapter", "merged"] = Field("adapter", description="What is pushed.")
    private: bool = Field(True, description="Whether only its owner sees the repository.")
    update: bool = Field(False, description="Push into a repository that exists already.")


ExportSpec = Annotated[
    AdapterArchive | MergedSpec | PytorchBinSpec | GgufSpec | GgufLoraSpec | HubSpec,
    Field(discriminator="format"),
]
export_spec_adapter: TypeAdapter[ExportSpec] = TypeAdapter(ExportSpec)
