"""Sizes in a config that may differ by layer: a number, a list of numbers, or a config for each layer."""

from transformers import PreTrainedConfig


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
