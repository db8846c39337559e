"""Starts a job from another job's adapter, after checking that it fits the job."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from app.core.adapters.files import WEIGHTS
from app.core.errors.jobs import AdapterUnfit
from worker.models.files.reading import reading
from worker.training import adapter

_HINT = "Use the base model and the lora settings that the adapter was made with, or leave out continue_from."
# Settings that change what weights of equal names and shapes mean.
_SETTINGS = ("r", "lora_alpha", "use_rslora", "use_dora")


def start_from(model: PeftModel, folder: Path) -> None:
    """Load the weights in a folder into the new adapter. Raises AdapterUnfit, which names the difference."""
    with reading("The adapter to continue from", hint=_HINT, raises=AdapterUnfit):
        saved = load_file(folder / WEIGHTS)
        config = LoraConfig.from_pretrained(str(folder))
    new = model.peft_config["default"]
    for name in _SETTINGS:
        if getattr(config, name) != getattr(new, name):
            raise _unfit(f"it has {name} {getattr(config, name)}, the job asks for {getattr(new, name)}")
    _compare(saved, get_peft_model_state_dict(model, save_embedding_layers=False))
    adapter.restore(model, folder)


def _compare(saved: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    for name in sorted(saved.keys() | wanted.keys()):
        if name not in wanted:
            raise _unfit(f"it has {name}, for which the job has no place")
        if name not in saved:
            raise _unfit(f"it has no {name}")
        if saved[name].shape != wanted[name].shape:
            found, expected = list(saved[name].shape), list(wanted[name].shape)
            raise _unfit(f"{name} is {found}, the job's is {expected}")


def _unfit(difference: str) -> AdapterUnfit:
    return AdapterUnfit(f"The adapter to continue from does not fit: {difference}.", hint=_HINT)
