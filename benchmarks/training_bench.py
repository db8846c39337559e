"""Trains the setups of benchmarks/training.py, each some steps, on a base model in memory."""

import gc
import statistics
import threading
import time
import traceback
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from trl import SFTTrainer

from app.core.jobs.events import Log, Metrics, Warn
from app.core.settings import TrainingPath
from app.core.specs.job import JobSpec
from benchmarks.gpu_monitor import GpuMonitor
from benchmarks.training_setups import Setup, make_request
from benchmarks.training_watch import StepTimer
from worker.models import base_model
from worker.models.device import find_device
from worker.models.files import description
from worker.planning import automatic_settings
from worker.processes.reports import Happened
from worker.templates.choice import TemplateSource
from worker.templates.token_rows import IGNORED, TokenRow
from worker.training import adapter, config
from worker.training.attempt import TrainingAttempt
from worker.training.batches import Collator, EpochSampler, make_dataset
from worker.training.construction import make_trainer
from worker.training.optimizations.apply import apply_optimizations, make_plan
from worker.training.ranks.world import ALONE, World
from worker.training.rows import PreparedRows
from worker.training.run import load_divided

# TFLOP/s of an H100 in large bfloat16 products; `model_flop_share` is the share of it.
PEAK_TFLOPS = 790.0


class Bench:
    """Trains setups on one base model in memory, loaded again where the quantization changes.

    `world`: the ranks of a job over several GPUs, of which this process is one.
    """

    def __init__(self, folder: Path, shape: str, row_ids: list[list[int]], world: World = ALONE) -> None:
        self._folder = folder
        self._shape = shape
        self._rows = [TokenRow(line, ids, [IGNORED, *ids[1:]]) for line, ids in enumerate(row_ids)]
        self._device = find_device()
        self._loaded: tuple[Any, PreTrainedModel] | None = None
        self._world = world
        self.weights = 0

    def measure(self, setup: Setup) -> dict[str, Any]:
        """Train a setup. Returns its line of the results."""
        try:
            return {"name": setup.name, "setup": asdict(setup), **self.train(setup)}
        # A setup may run out of memory, or ask for what this machine lacks.
        except Exception as error:
            traceback.print_exc()
            self._loaded = None  # an adapter may still be on it
            return {"name": setup.name, "setup": asdict(setup), "failure": f"{type(error).__name__}: {error}"}
        finally:
            gc.collect()
            if self._device.is_cuda:
                torch.cuda.empty_cache()

    def train(self, setup: Setup) -> dict[str, Any]:
        """Train a setup. Returns its figures; `losses` are those of all ranks."""
        spec = JobSpec.model_validate(setup.spec(self._shape))
        said: list[str] = []
        losses: list[float] = []
        attempt = self._make_attempt(spec, said, losses, is_alone=setup.alone)
        model = self._attach(attempt)
        trainer, undo = self._make_trainer(setup, attempt, model)
        meet = partial(self._world.gather_numbers, [])
        timer = StepTimer(trainer, self._device.is_cuda, setup.warm_up, meet)
        trainer.add_callback(timer)
        if self._device.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        began = time.monotonic()
        is_watched = self._device.is_cuda and self._world.is_alone
        with undo, GpuMonitor() if is_watched else nullcontext() as monitor:
            trainer.train()
        seconds = time.monotonic() - began
        model.unload()
        return {
            **self._summarize(setup, timer, trainer),
            "chip": monitor.summary() if monitor else None,
            "seconds_in_all": round(seconds, 1),
            "said": said,
            **({} if setup.code == "trl" else {"losses": losses}),
        }

    def _attach(self, attempt: TrainingAttempt) -> PeftModel:
        """The base model with a new adapter."""
        spec = attempt.request.spec
        if attempt.world.divides_base:
            quantization = automatic_settings.quantization(spec, self._device)
            model = load_divided(attempt, self._folder / "models" / self._shape, quantization)
            self.weights = count_weights(model.get_base_model())
            return model
        base = self._load(spec)
        # Earlier setups may have left checkpointing on, and hooks that require a gradient of the embeddings.
        getattr(base, f"{config.CHECKPOINTING}_disable")()
        base.get_input_embeddings()._forward_hooks.clear()
        return adapter.attach(base, spec)

    def _make_trainer(
        self, setup: Setup, attempt: TrainingAttempt, model: PeftModel
    ) -> tuple[SFTTrainer, ExitStack]:
        spec, folder = attempt.request.spec, self._folder / "models" / self._shape
        packed_length = setup.length if setup.packing else None
        tokenizer = description.load_tokenizer(folder)
        if setup.code == "trl":
            settings = config.trainer_config(spec.training, self._device, attempt.checkpoints)
            settings.save_strategy = "no"
            trainer = SFTTrainer(
                model=model,
                args=settings,
                train_dataset=make_dataset(self._rows, packed_length=packed_length),
                data_collator=Collator(tokenizer.pad_token_id),
                processing_class=tokenizer,
            )
            of_a_step = settings.train_batch_size * settings.gradient_accumulation_steps
            # The order of rows of `AdapterTrainer`, so that every setup learns from the same ones.
            trainer._get_train_sampler = lambda *_given: EpochSampler(
                [len(ids) for ids in trainer.train_dataset["input_ids"]],
                seed=settings.data_seed,
                group_size=of_a_step if spec.training.group_by_length else None,
            )
            return trainer, ExitStack()
        rows = PreparedRows(self._rows, [], [], TemplateSource.MODEL)
        trainer = make_trainer(
            attempt, model, tokenizer, rows, spec.training, packed_length=packed_length, newest=None
        )
        path = TrainingPath.PLAIN if setup.code == "plain" else TrainingPath.AUTO
        plan = make_plan(attempt, trainer.model.get_base_model(), spec.training, path)
        return trainer, apply_optimizations(attempt, trainer, plan)

    def _load(self, spec: JobSpec) -> PreTrainedModel:
        quantization = automatic_settings.quantization(spec, self._device)
        if self._loaded is None or self._loaded[0] != quantization:
            self._loaded = None
            gc.collect()
            model = base_model.load_model(self._folder / "models" / self._shape, quantization, self._device)
            self._loaded = quantization, model
            self.weights = count_weights(model)
        return self._loaded[1]

    def _make_attempt(
        self, spec: JobSpec, said: list[str], losses: list[float], *, is_alone: bool
    ) -> TrainingAttempt:
        request = make_request(
            spec,
            dataset=self._folder,
            models_folder=self._folder / "models",
            job_folder=self._folder / "jobs" / "training",
            is_alone=is_alone,
        )

        def send(report: Any) -> None:
            if isinstance(report, Happened) and isinstance(report.event, Log | Warn):
                said.append(report.event.message)
            if isinstance(report, Happened) and isinstance(report.event, Metrics):
                losses.append(report.event.loss)

        divides_base = spec.resources.strategy == "fsdp" and not self._world.is_alone
        world = replace(self._world, divides_base=divides_base)
        return TrainingAttempt(request, self._device, send, threading.Event(), world)

    def _summarize(self, setup: Setup, timer: StepTimer, trainer: SFTTrainer) -> dict[str, Any]:
        seconds = timer.seconds[setup.warm_up : -1]  # the last step was profiled
        tokens = timer.tokens[setup.warm_up : -1]
        speed = sum(tokens) / sum(seconds)
        return {
            "ms_a_step": round(statistics.mean(seconds) * 1e3, 1),
            "ms_of_steps": [round(second * 1e3, 1) for second in timer.seconds],
            "tokens_a_step": round(statistics.mean(tokens)),
            "tokens_per_second": round(speed),
            "model_flop_share": round(speed * 4 * self.weights / (PEAK_TFLOPS * 1e12), 4),
            **self._measure_memory(),
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "profile": timer.profile,
        }

    def _measure_memory(self) -> dict[str, int]:
        """The peak of tensors, and all that is in use on the device at the end: NCCL's buffers too.

        On a CPU the peak of the process (Linux).
        """
        if not self._device.is_cuda:
            # Not `getrusage`, whose figure a process inherits from the one that started it.
            status = Path("/proc/self/status").read_text()
            kibibytes = status.partition("VmHWM:")[2].split(maxsplit=1)[0]
            return {"peak_memory_bytes": int(kibibytes) << 10}
        free, total = torch.cuda.mem_get_info()
        return {
            "peak_memory_bytes": torch.cuda.max_memory_allocated(),
            "device_memory_bytes": total - free,
        }


def count_weights(model: PreTrainedModel) -> int:
    """Weights of all linear layers: the N of 4N model FLOPs for a token of QLoRA."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return sum(linear.in_features * linear.out_features for linear in linears)
