"""The layers of a model, and sizes in a config that may differ by layer: a number, a list, or several."""

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


def largest(config: PreTrainedConfig, name: str) -> int | None:
    """The largest value of a size over all layers; None where the config does not have it.

    Gemma 3n and others list the values; from transformers 5.20 on, a config may have one of its own for each
    layer, and refuses to be read without saying which (Gemma 4).
    """
    configs = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]
    found = [getattr(one, name, None) for one in configs]
    numbers = [
        number for value in found for number in (value if isinstance(value, list | tuple) else [value])
    ]
    return max((int(number) for number in numbers if number), default=None)


def find_decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder's layers in order: modules of classes that transformers never splits between devices."""
    names = set(model._no_split_modules or ())
    return [module for module in model.base_model.modules() if type(module).__name__ in names]
