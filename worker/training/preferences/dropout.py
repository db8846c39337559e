"""Turns off all dropout of a base model: noise in the log-probabilities that are compared."""

from torch import nn


def turn_off_dropout(model: nn.Module) -> None:
    """Set every dropout probability to 0: of dropout layers, of modules that drop inside a function, and in
    the configuration, by which optimizations are planned."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        _set_to_zero(module)
    config = getattr(model, "config", None)
    if config is not None:
        _set_to_zero(config.get_text_config())


def _set_to_zero(owner: object) -> None:
    for name, value in list(vars(owner).items()):
        if isinstance(value, float) and value > 0 and name.endswith(("dropout", "pdrop", "dropout_prob")):
            setattr(owner, name, 0.0)
