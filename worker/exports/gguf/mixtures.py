"""Which GGUF type each tensor of a K-quant or IQ4_XS file has: llama.cpp's mixtures. Pure.

The rules are those of llama.cpp's src/llama-quant.cpp, build 11549, for models without experts: a few layers
that are hurt most by rounding get more bits, and rows that a type's blocks do not divide get another type.
"""

import re
from dataclasses import dataclass

import gguf
from gguf import GGMLQuantizationType as Type

from app.core.specs.export import GgufType

# The type of most tensors.
_MAIN = {
    GgufType.Q6_K: Type.Q6_K,
    GgufType.Q5_K_M: Type.Q5_K,
    GgufType.Q4_K_M: Type.Q4_K,
    GgufType.IQ4_XS: Type.IQ4_XS,
    GgufType.Q3_K_M: Type.Q3_K,
}
# Types with blocks of 32 numbers for rows that blocks of 256 do not divide.
_FALLBACK = {
    Type.IQ4_XS: Type.IQ4_NL,
    Type.Q3_K: Type.Q4_0,
    Type.Q4_K: Type.Q5_0,
    Type.Q5_K: Type.Q5_1,
    Type.Q6_K: Type.Q8_0,
}
_LAYER = re.compile(r"blk\.(\d+)\.")
# Where the heads of a value matrix are shared by this many, IQ4_XS gives it more bits.
_MANY_SHARING = 4
_LAYERS_OF_70B = 80


@dataclass(frozen=True)
class ModelOutline:
    """What the choice of types depends on besides the tensor itself.

    `sharing`: query heads for each key and value head. `is_tied`: the file has no output layer of its own.
    """

    arch: str
    layers: int
    sharing: int
    is_tied: bool
    has_importance: bool


@dataclass(frozen=True)
class ChosenType:
    """A tensor's type, and the type of the mixture where the rows did not allow that."""

    type: Type
    in_place_of: Type | None = None


def choose_type(name: str, row_length: int, mixture: GgufType, outline: ModelOutline) -> ChosenType:
    """The type of a matrix whose rows have `row_length` numbers."""
    wanted = _find_wanted(name, row_length, mixture, outline)
    if _fits(row_length, wanted):
        return ChosenType(wanted)
    smaller = _FALLBACK.get(wanted)
    if smaller is None or not _fits(row_length, smaller):
        return ChosenType(Type.F16, wanted)
    return ChosenType(smaller, wanted)


def _find_wanted(name: str, row_length: int, mixture: GgufType, outline: ModelOutline) -> Type:
    main = _MAIN[mixture]
    if name == "output.weight" or (outline.is_tied and name == "token_embd.weight"):
        return Type.Q6_K if _fits(row_length, main) else Type.Q8_0
    found = _LAYER.match(name)
    layer = int(found.group(1)) if found else 0
    if "attn_v.weight" in name or "attn_qkv.weight" in name:
        return _find_value_type(layer, mixture, outline)
    if "ffn_down" in name:
        return _find_down_type(layer, mixture, outline)
    if "attn_output.weight" in name and mixture is GgufType.Q3_K_M:
        return Type.Q4_K
    return main


def _find_value_type(layer: int, mixture: GgufType, outline: ModelOutline) -> Type:
    found = _MAIN[mixture]
    if mixture is GgufType.Q3_K_M:
        found = Type.Q5_K if layer < 2 else Type.Q4_K
    elif mixture is GgufType.IQ4_XS and outline.sharing >= _MANY_SHARING:
        found = Type.Q5_K
    elif mixture in (GgufType.Q4_K_M, GgufType.Q5_K_M) and _needs_more_bits(layer, outline.layers):
        found = Type.Q6_K
    is_70b = outline.layers == _LAYERS_OF_70B and outline.arch in ("llama", "qwen2") and outline.sharing > 1
    return Type.Q5_K if is_70b and found in (Type.Q3_K, Type.Q4_K) else found


def _find_down_type(layer: int, mixture: GgufType, outline: ModelOutline) -> Type:
    if mixture is GgufType.Q3_K_M:
        return Type.Q5_K if layer < outline.layers // 16 else Type.Q4_K
    if mixture in (GgufType.Q4_K_M, GgufType.Q5_K_M) and _needs_more_bits(layer, outline.layers):
        return Type.Q6_K
    if mixture is GgufType.IQ4_XS and layer < outline.layers // 8 and not outline.has_importance:
        return Type.Q5_K
    return _MAIN[mixture]


def _needs_more_bits(layer: int, layers: int) -> bool:
    """Whether the layer is of the first or last eighth, or a third of those between them."""
    first = layers // 8
    return layer < first or layer >= 7 * layers // 8 or (layer - first) % 3 == 2


def _fits(row_length: int, type: Type) -> bool:
    block, _size = gguf.GGML_QUANT_SIZES[type]
    return row_length % block == 0
