"""Which type each tensor of a GGUF file has, and the size that follows. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence

import gguf
from gguf import GGMLQuantizationType

from app.core.specs.export import GgufType
from worker.exports.gguf.families import GgufLayout
from worker.exports.gguf.mixtures import ChosenType, ModelOutline, choose_type
from worker.exports.merged.checkpoint import TensorSpec

_FEW_BITS = {GgufType.Q4_0, GgufType.Q4_1, GgufType.Q5_0, GgufType.Q5_1}
_EMBEDDINGS = ("token_embd.weight", "output.weight")


def choose_types(
    tensors: Sequence[TensorSpec], layout: GgufLayout, type: GgufType, *, has_importance: bool = False
) -> dict[str, ChosenType]:
    """The type of each tensor of a checkpoint in a file of that type, by the tensor's name in the file."""
    shapes = {layout.name(spec.name): spec.shape for spec in tensors}
    config = layout.config
    outline = ModelOutline(
        arch=layout.arch_name,
        layers=config.num_hidden_layers,
        sharing=config.num_attention_heads // config.num_key_value_heads,
        is_tied="output.weight" not in shapes,
        has_importance=has_importance,
    )
    return {name: _choose_type(name, shape, type, outline) for name, shape in shapes.items()}


def count_bytes(tensors: Sequence[TensorSpec], layout: GgufLayout, type: GgufType) -> int:
    """The bytes of the tensors in a file of that type."""
    chosen = choose_types(tensors, layout, type)
    total = 0
    for spec in tensors:
        block, size = gguf.GGML_QUANT_SIZES[chosen[layout.name(spec.name)].type]
        total += spec.elements // block * size
    return total


def describe_fallbacks(chosen: Mapping[str, ChosenType]) -> str | None:
    """What became of tensors whose rows a type's blocks do not divide, in words, or None where none is."""
    replaced = Counter(
        (found.in_place_of.name.lower(), found.type.name.lower())
        for found in chosen.values()
        if found.in_place_of is not None
    )
    if not replaced:
        return None
    pairs = ", ".join(f"{count} in {new} and not {old}" for (old, new), count in replaced.most_common())
    matrices = sum(found.type is not GGMLQuantizationType.F32 for found in chosen.values())
    return (
        f"{replaced.total()} of {matrices} weights have rows that are no multiple of 256, which K-quants "
        f"need, and have the type that llama.cpp takes then: {pairs}."
    )


def _choose_type(name: str, shape: tuple[int, ...], type: GgufType, outline: ModelOutline) -> ChosenType:
    """The GGUF type of one tensor.

    Vectors are float32. Other types than mixtures: embeddings have at least 8 bits, and rows that are no
    multiple of the block have 16.
    """
    if len(shape) == 1:
        return ChosenType(GGMLQuantizationType.F32)
    if type.is_mixture:
        return choose_type(name, shape[-1], type, outline)
    wanted = GGMLQuantizationType[type.name]
    if type in _FEW_BITS and name in _EMBEDDINGS:
        wanted = GGMLQuantizationType.Q8_0
    block, _size = gguf.GGML_QUANT_SIZES[wanted]
    return ChosenType(wanted if shape[-1] % block == 0 else GGMLQuantizationType.F16)
