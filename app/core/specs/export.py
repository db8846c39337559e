"""What an export request may contain: a format and its options. Knows no database and no torch."""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from app.core.specs.patterns import HUB_NAME, HUB_REVISION, RUN_NAME
from app.core.specs.priority import Priority


class BaseWeights(StrEnum):
    """Which base weights an adapter is merged into."""

    ORIGINAL = "original"
    DEQUANTIZED = "dequantized"


class GgufType(StrEnum):
    """The types of weights in a GGUF file, by llama.cpp's names."""

    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q5_1 = "q5_1"
    Q5_0 = "q5_0"
    Q4_1 = "q4_1"
    Q4_0 = "q4_0"
    Q6_K = "q6_k"
    Q5_K_M = "q5_k_m"
    Q4_K_M = "q4_k_m"
    IQ4_XS = "iq4_xs"
    Q3_K_M = "q3_k_m"

    @property
    def is_mixture(self) -> bool:
        """Whether it is a mixture of types that llama.cpp's own quantizer rounds to: K-quants and IQ4_XS."""
        return self in _MIXTURES


_MIXTURES = {GgufType.Q6_K, GgufType.Q5_K_M, GgufType.Q4_K_M, GgufType.IQ4_XS, GgufType.Q3_K_M}


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Queued(_Spec):
    priority: Priority = 0


class AdapterArchive(_Queued):
    """The PEFT folder as one archive."""

    format: Literal["adapter"]
    archive: Literal["zip", "tar"] = Field("zip", description="Kind of archive.")


class _Merging(_Queued):
    base: BaseWeights = Field(
        BaseWeights.DEQUANTIZED,
        description="`dequantized`: the base weights quantized to 4 bits and dequantized, which is what the "
        "adapter was trained against and what this box serves. `original`: the base model's own "
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


class Fp8Spec(_Sharded):
    """A whole model in safetensors, its linear layers in FP8, for vLLM and SGLang (compressed-tensors)."""

    format: Literal["fp8"]


class CalibratedSpec(_Sharded):
    """A whole model in safetensors, its linear layers in 4 bits by AWQ or GPTQ, for vLLM and SGLang.

    Rounded by llm-compressor, calibrated on rows that the adapter was trained on (compressed-tensors).
    """

    format: Literal["awq", "gptq"] = Field(description="By which of the two the weights are rounded.")
    calibration_tokens: int = Field(
        16_384,
        ge=512,
        le=1_048_576,
        description="How many tokens of the rows of the adapter's dataset are used, at most.",
    )


class PytorchBinSpec(_Sharded):
    """A whole model as `pytorch_model*.bin`: pickles, for programs that read nothing else."""

    format: Literal["pytorch_bin"]


class GgufSpec(_Merging):
    """A whole model as GGUF, one file a type, with its tokenizer and chat template, and a Modelfile."""

    format: Literal["gguf"]
    type: GgufType | Annotated[list[GgufType], Field(min_length=1, max_length=len(GgufType))] = Field(
        GgufType.Q8_0,
        description="Type of the weights; several types make a file each, from one merge.",
        examples=["q8_0", ["q4_k_m", "q6_k"]],
    )
    importance_matrix: bool = Field(
        False,
        description="Whether K-quants and `iq4_xs` round the weights that the rows of the adapter's dataset "
        "use most with the least error.",
    )

    @property
    def types(self) -> list[GgufType]:
        """The types of the files, in the order that was asked for."""
        return self.type if isinstance(self.type, list) else [self.type]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.types)) < len(self.types):
            raise ValueError("A type may be given once.")
        if self.importance_matrix and not any(type.is_mixture for type in self.types):
            used_by = ", ".join(sorted(_MIXTURES))
            raise ValueError(f"importance_matrix is used by {used_by} alone; ask for one of these types.")
        return self


class GgufLoraSpec(_Queued):
    """The adapter alone, for `--lora` of llama.cpp."""

    format: Literal["gguf_lora"]
    type: Literal["f16", "f32"] = Field("f16", description="Type of the weights.")
    with_base: bool = Field(
        False, description="Also a GGUF file of the base weights that the adapter was trained against."
    )


CardTag = Annotated[str, Field(min_length=1, max_length=64, pattern=RUN_NAME)]


class _HubTarget(_Spec):
    repository: str = Field(
        pattern=HUB_NAME, max_length=96, description="owner/name.", examples=["me/support-bot"]
    )
    content: Literal["adapter", "merged"] = Field(
        "adapter", description="The adapter alone, or the base model with the adapter merged into it."
    )
    private: bool = Field(
        True,
        description="Whether only its owner sees the repository. A private push is refused by a public one.",
    )
    revision: str | None = Field(
        None,
        pattern=HUB_REVISION,
        max_length=100,
        description="The branch, which is made where it is missing; null: main.",
    )
    tags: list[CardTag] = Field([], max_length=50, description="Tags of the model card, besides its own.")


class HubSpec(_HubTarget, _Sharded):
    """A repository on the Hub, made and filled."""

    format: Literal["hub"]
    update: bool = Field(False, description="Push into a repository that exists already.")


class JobPush(_HubTarget):
    """A push to the Hub once a job has succeeded, as an export of its own."""

    update: bool = Field(True, description="Push into the repository where it exists already.")

    def as_export(self) -> HubSpec:
        """The export that pushes the job's adapter."""
        return HubSpec.model_validate({"format": "hub", **self.model_dump()})


ExportSpec = Annotated[
    AdapterArchive
    | MergedSpec
    | Fp8Spec
    | CalibratedSpec
    | PytorchBinSpec
    | GgufSpec
    | GgufLoraSpec
    | HubSpec,
    Field(discriminator="format"),
]
export_spec_adapter: TypeAdapter[ExportSpec] = TypeAdapter(ExportSpec)
