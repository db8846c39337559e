"""Turns a job's training settings into TRL's. Knows no model and no files.

`packing`, `assistant_only_loss`, `max_seq_length` and `validation_split` are not used here: they apply to the
rows, in rows.py and batches.py.
"""

import dataclasses
from pathlib import Path
from typing import Any

from trl import SFTConfig

from app.core.specs.job import TrainingSpec
from worker.models.device import Device
from worker.planning.automatic_settings import has_automatic_batch, mixed_precision

# transformers 5.23 renamed the field and warns of the old name; 5.17 knows only the old one.
_FIELDS = {field.name for field in dataclasses.fields(SFTConfig)}
CHECKPOINTING = (
    "activation_checkpointing" if "activation_checkpointing" in _FIELDS else "gradient_checkpointing"
)


def trainer_config(training: TrainingSpec, device: Device, output_dir: Path) -> SFTConfig:
    """TRL's settings for training settings without `auto`. Rows are tokenized already, so TRL prepares
    nothing.

    Raises InvalidRequest where the device does not support the mixed precision of the spec.
    """
    assert not has_automatic_batch(training)
    fp16, bf16 = mixed_precision(training, device)
    checkpointing: dict[str, Any] = {
        CHECKPOINTING: training.gradient_checkpointing,
        f"{CHECKPOINTING}_kwargs": {"use_reentrant": False},
    }
    return SFTConfig(
        output_dir=str(output_dir),
        num_train_epochs=training.num_train_epochs,
        max_steps=training.max_steps,
        per_device_train_batch_size=training.per_device_train_batch_size,
        per_device_eval_batch_size=training.per_device_eval_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        optim=training.optim,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        lr_scheduler_type=training.lr_scheduler_type,
        # A value below 1 is a share of the steps: transformers has no warmup_ratio any more.
        warmup_steps=training.warmup_ratio,
        max_grad_norm=training.max_grad_norm,
        fp16=fp16,
        bf16=bf16,
        use_cpu=not device.is_cuda,
        train_sampling_strategy="group_by_length" if training.group_by_length else "random",
        neftune_noise_alpha=training.neftune_noise_alpha,
        seed=training.seed,
        data_seed=training.seed,
        logging_steps=training.logging_steps,
        logging_first_step=True,
        # The filter would replace a NaN by the mean of earlier losses.
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=training.save_steps,
        # Without eval_steps there is one evaluation, which run.py starts after training.
        eval_strategy="steps" if training.eval_steps else "no",
        eval_steps=training.eval_steps,
        prediction_loss_only=True,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_pin_memory=device.is_cuda,
        # Otherwise each copy of a batch to a GPU waits for all earlier steps.
        accelerator_config={"non_blocking": device.is_cuda},
        # construction.py adds TensorBoard's callback, which needs the job's folder. The other trackers get
        # the job's events from the worker (worker/trackers), so that no step waits for one.
        report_to="none",
        disable_tqdm=True,
        **checkpointing,
    )
