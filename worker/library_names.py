"""Names of other libraries that the worker uses though these libraries do not promise to keep them.

A new release may move or rename each of them without notice. `tests/worker/test_library_names.py` says which
one is gone, and holds this list complete for names that begin with an underscore.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class LibraryName:
    """A name as it was seen in a release. `owner`: the module, or the class in it after a colon.

    `is_set_later`: an attribute of instances, which only the owner's source shows.
    """

    name: str
    owner: str
    seen_in: str
    used_in: str
    is_set_later: bool = False


_TRANSFORMERS = "transformers 5.17 to 5.23"
_TRAINER = "worker/training/trainer.py"
_RUNTIME = "worker/training/optimizations"

LIBRARY_NAMES = (
    LibraryName("_get_train_sampler", "transformers:Trainer", _TRANSFORMERS, _TRAINER),
    LibraryName("_save_checkpoint", "transformers:Trainer", _TRANSFORMERS, _TRAINER),
    LibraryName("_save_optimizer_and_scheduler", "transformers:Trainer", _TRANSFORMERS, _TRAINER),
    LibraryName("_save_rng_state", "transformers:Trainer", _TRANSFORMERS, _TRAINER),
    LibraryName("_save_scaler", "transformers:Trainer", _TRANSFORMERS, _TRAINER),
    LibraryName("_prepare_inputs", "transformers:Trainer", _TRANSFORMERS, f"{_RUNTIME}/trial.py"),
    LibraryName("_metrics", "trl:SFTTrainer", "TRL 1.16", _TRAINER, is_set_later=True),
    LibraryName(
        "_attn_implementation",
        "transformers.configuration_utils:PreTrainedConfig",
        _TRANSFORMERS,
        f"{_RUNTIME}/apply.py, worker/inference/model/support.py",
    ),
    LibraryName(
        "_supports_attention_backend",
        "transformers:PreTrainedModel",
        _TRANSFORMERS,
        "worker/planning/optimizations.py",
    ),
    LibraryName(
        "_keep_in_fp32_modules", "transformers:PreTrainedModel", _TRANSFORMERS, "worker/models/base_model.py"
    ),
    LibraryName(
        "_no_split_modules", "transformers:PreTrainedModel", _TRANSFORMERS, "worker/models/layer_sizes.py"
    ),
    LibraryName(
        "_update_model_kwargs_for_generation",
        "transformers:GenerationMixin",
        _TRANSFORMERS,
        "worker/inference/general/generation.py",
    ),
    LibraryName(
        "load_balancing_loss_func",
        "transformers.models.mixtral.modeling_mixtral",
        _TRANSFORMERS,
        "worker/training/loss.py",
    ),
    LibraryName(
        "_check_lora_target_modules_mamba",
        "peft.tuners.tuners_utils",
        "PEFT 0.21",
        "worker/models/targets.py",
    ),
    LibraryName(
        "sync_gpu", "bitsandbytes.optim.optimizer", "bitsandbytes 0.50", f"{_RUNTIME}/bnb_optimizer.py"
    ),
    LibraryName(
        "prefetch_state",
        "bitsandbytes.optim.optimizer:Optimizer8bit",
        "bitsandbytes 0.50",
        f"{_RUNTIME}/bnb_optimizer.py",
    ),
    LibraryName("_foreach_copy_", "torch", "PyTorch 2.11 to 2.13", "worker/decoder/lora_linears.py"),
    LibraryName(
        "_is_mkldnn_bf16_supported", "torch.ops.mkldnn", "PyTorch 2.11 to 2.13", "worker/models/device.py"
    ),
    LibraryName(
        "_buffers",
        "torch.nn:Module",
        "PyTorch 2.11 to 2.13",
        "worker/inference/general/model_copy.py",
        is_set_later=True,
    ),
    LibraryName(
        "_client_lock", "trackio.run:Run", "trackio 0.43", "worker/trackers/trackio_run.py", is_set_later=True
    ),
    LibraryName("_flush_queues_inline", "trackio.run:Run", "trackio 0.43", "worker/trackers/trackio_run.py"),
    LibraryName(
        "_destroy", "torch.library:Library", "PyTorch 2.11 to 2.13", "worker/models/cpu_dequantize.py"
    ),
)
