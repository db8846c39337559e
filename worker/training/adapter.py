"""A LoRA adapter: attached to a base model, saved to files, restored. Knows no trainer and no job folder."""

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
