"""Divides the frozen base model between the ranks, by PyTorch's FSDP2 (`fully_shard`; decision 54).

Each rank holds a part of every weight of the decoder's layers. A layer's weights are collected from all ranks
before its forward and its backward pass and freed after it, while the next layer's are on their way, so all
ranks must make the same passes. The adapter, the embeddings, the output layer and the last norm are whole on
each rank: gradients, optimizer and checkpoints are those of ranks that hold the whole base model.
"""

from peft import PeftModel
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from app.core.errors import InvalidRequest
from worker.models.device import Device
from worker.models.layer_sizes import find_decoder_layers
from worker.training.memory import Batch
from worker.training.ranks.world import World


def make_mesh(world: World, device: Device) -> DeviceMesh:
    """The devices of all ranks, as FSDP2 names them."""
    return init_device_mesh(device.torch.type, (world.size,))


def divide(model: PeftModel, mesh: DeviceMesh, device: Device) -> None:
    """Divide the base model, which is in the host's memory, and move this rank's part to the device.

    Raises InvalidRequest where the base model can't be divided.
    """
    base = model.get_base_model()
    layers = find_decoder_layers(base)
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    _refuse_quantized(base.config.model_type, [p for layer in layers for p in layer.parameters()])
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=trained)
    # The root, so that a layer's weights are collected while the one before it computes.
    decoder = base.base_model
    whole = {parameter for parameter in decoder.parameters() if not isinstance(parameter, DTensor)}
    fully_shard(decoder, mesh=mesh, ignored_params=whole)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not isinstance(parameter, DTensor):
                parameter.data = parameter.data.to(device.torch)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device.torch)


def _refuse_quantized(family: str, weights: list[nn.Parameter]) -> None:
    if not weights:
        raise InvalidRequest(
            f"The layers of a base model of the family {family} are not known, so it can't be divided.",
            param="resources.strategy",
            hint="Set resources.strategy to ddp.",
        )
    if any(not weight.is_floating_point() or weight.dtype.itemsize < 2 for weight in weights):
        raise InvalidRequest(
            "The base model's files are quantized, and FSDP2 divides weights of 16 or 32 bits only.",
            param="resources.strategy",
            hint="Set resources.strategy to ddp, or name the base model's unquantized files.",
        )


def count_held(model: PeftModel) -> tuple[int, int]:
    """(weights that this rank holds between passes, all weights)."""
    weights = list(model.parameters())
    held = sum((one.to_local() if isinstance(one, DTensor) else one).numel() for one in weights)
    return held, sum(one.numel() for one in weights)


def fill_up(parts: list[Batch], passes: int) -> list[Batch]:
    """The parts of a batch, and as many parts from which nothing is learned as make `passes` of them.

    A rank's last batch of an epoch may have fewer rows than those of the others.
    """
    nothing = {"learned": parts[0]["learned"][:0], "targets": parts[0]["targets"][:0]}
    return [*parts, *({**parts[0], **nothing} for _ in range(passes - len(parts)))]
