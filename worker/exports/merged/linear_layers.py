"""Which weights of a model the formats of compressed-tensors round, and which models they are for."""

from importlib.util import find_spec

from torch import nn

from app.core.errors.exports import ExportUnsupported, QuantizerMissing
from worker.exports.merged.checkpoint import TensorSpec
from worker.exports.merged.merge import BaseShape

_PACKAGE = "compressed_tensors"


def check_linears(shape: BaseShape, tensors: list[TensorSpec], format: str) -> None:
    """Raise ExportUnsupported for a model with weights that the format has no place for, and
    QuantizerMissing where the package that reads the files back is not installed.

    `format` is its name in messages.
    """
    if find_spec(_PACKAGE) is None:
        raise QuantizerMissing(
            f"{format} files are read back with compressed-tensors, which is not installed.",
            hint="On the worker: pip install compressed-tensors, then retry.",
        )
    known = {*find_linears(shape), shape.input_weight, shape.output_weight}
    for tensor in tensors:
        if len(tensor.shape) > 1 and tensor.name not in known:
            raise ExportUnsupported(
                f"{format} is for models whose matrices are those of linear layers; {tensor.name} is not.",
                hint='Models with experts, for example, are served from the format "merged".',
            )


def find_linears(shape: BaseShape) -> set[str]:
    """The names of the weights that are rounded: those of all linear layers except the output layer."""
    names = {f"{name}.weight" for name, module in shape.modules.items() if isinstance(module, nn.Linear)}
    return names - {shape.output_weight or ""}
