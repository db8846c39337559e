"""A LoRA adapter: attached to a base model, saved to files, restored. Knows no trainer and no job folder."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel, set_seed

from app.core.adapters.files import WEIGHTS
from app.core.specs.job import JobSpec
from worker.models import lora


def attach(model: PreTrainedModel, spec: JobSpec) -> PeftModel:
    """Attach a new adapter to the base model, with weights drawn from the seed. Raises BadTarget."""
    set_seed(spec.training.seed)
    adapted = lora.attach(model, spec.lora)
    # The base model's name in place of this machine's path, so that the adapter can be used elsewhere.
    adapted.peft_config["default"].base_model_name_or_path = spec.base_model
    return adapted


def trainable_to_float32(model: PeftModel) -> None:
    """Turn trained weights into float32.

    TRL rounds a 4-bit model's adapter to bfloat16: small updates are lost, and fp16 training fails.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def is_finite(model: PeftModel) -> bool:
    """Whether no trained weight is NaN or infinite."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return bool(torch.stack([parameter.isfinite().all() for parameter in trained]).all())


def save(model: PeftModel, folder: Path) -> None:
    """Write weights and config to a folder, without PEFT's generic model card."""
    # PEFT's default for `save_embedding_layers` sends a request to the Hub.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def restore(model: PeftModel, folder: Path) -> None:
    """Load saved weights into an adapter that is attached already."""
    set_peft_model_state_dict(model, load_file(folder / WEIGHTS))


def copy_trained_biases(model: PeftModel) -> dict[str, torch.Tensor]:
    """Copies of the base model's own biases that the adapter's training changes (`lora.bias`), by name."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name.endswith(".bias") and "modules_to_save" not in name
    }


@contextmanager
def switched_off(model: PeftModel, base_biases: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Within this context the model computes as its base model does. `base_biases`: from before training.

    PEFT leaves trained biases in their places where an adapter is disabled, and warns of it.
    """
    biases = [
        (parameter, base_biases[name]) for name, parameter in model.named_parameters() if name in base_biases
    ]
    trained = [parameter.data for parameter, _base in biases]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Careful, disabling adapter layers with bias")
        with model.disable_adapter():
            for parameter, base in biases:
                parameter.data = base.to(parameter.data)
            try:
                yield
            finally:
                for (parameter, _base), data in zip(biases, trained, strict=True):
                    parameter.data = data
