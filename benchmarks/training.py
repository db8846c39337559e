"""Training steps of a 7B shape with random weights in NF4, and of plain TRL: time, tokens, memory, kernels.

    python -m benchmarks.training OUT                                 every setup, one after the other
    python -m benchmarks.training OUT --setups recipe "packed, r 64"  some of them
    python -m benchmarks.training OUT --shape tiny --steps 3          on a CPU, to see that it runs

The base model is loaded once; each setup puts an adapter on it, trains some steps of the same rows with the
same seed, and takes it off. `OUT` is written after each setup, so what was measured is there if time ends.
The figures count real tokens: padding left out.
"""

import argparse
import dataclasses
import gc
import json
import statistics
import threading
import time
import traceback
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from trl import SFTTrainer

from app.core.datasets.rows import DatasetFormat
from app.core.jobs.events import Log, Warn
from app.core.settings import TrainingPath
from app.core.specs.job import JobSpec
from benchmarks import estimate_settings
from benchmarks.gpu_monitor import GpuMonitor, measure_products
from benchmarks.training_setups import MAX_ROW_TOKENS, ROWS, SETUPS, TINY, Setup, draw_rows
from benchmarks.training_watch import StepTimer
from worker.models import base_model
from worker.models.device import find_device
from worker.models.files import description
from worker.planning import automatic_settings
from worker.processes.reports import Happened, TrainingRequest
from worker.templates.token_rows import IGNORED, TokenRow
from worker.training import adapter, config, run
from worker.training.attempt import TrainingAttempt
from worker.training.batches import Collator, make_dataset
from worker.training.optimizations.apply import apply_optimizations
from worker.training.trainer import AdapterTrainer

# TFLOP/s of an H100 in large bfloat16 products; `model_flop_share` is the share of it.
PEAK_TFLOPS = 790.0
SHAPES = {"llama-7b": estimate_settings.SEVEN_B, "tiny": TINY}


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--setups", nargs="+", choices=[setup.name for setup in SETUPS], metavar="SETUP")
    parser.add_argument("--shape", choices=SHAPES, default="llama-7b")
    parser.add_argument("--steps", type=int, help="of every setup, in place of its own; 2 are not counted")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--longest", type=int, default=MAX_ROW_TOKENS, help="tokens of a row")
    parser.add_argument("--folder", type=Path, default=estimate_settings.FOLDER, help="for the base model")
    parser.add_argument("--seconds", type=float, default=540.0, help="no setup is begun after so long")
    options = parser.parse_args()
    measure(
        options.out,
        [
            dataclasses.replace(setup, steps=options.steps, warm_up=2) if options.steps else setup
            for setup in SETUPS
            if not options.setups or setup.name in options.setups
        ],
        shape=options.shape,
        row_ids=draw_rows(options.rows, SHAPES[options.shape]["vocab_size"], longest=options.longest),
        folder=options.folder,
        seconds=options.seconds,
    )


def measure(
    out: Path,
    setups: list[Setup],
    *,
    shape: str,
    row_ids: list[list[int]],
    folder: Path,
    seconds: float,
) -> None:
    """Measure one setup after the other; a failure is written to its line."""
    began = time.monotonic()
    estimate_settings.build(shape, folder, SHAPES[shape])
    bench = Bench(folder, shape, row_ids)
    lines: list[dict[str, Any]] = []
    products = measure_products() if torch.cuda.is_available() else None
    for setup in setups:
        if time.monotonic() - began > seconds:
            lines.append({"name": setup.name, "failure": "there was no time left"})
            continue
        lines.append(bench.measure(setup))
        print(_line(lines[-1]), flush=True)
        described = estimate_settings.describe_machine("benchmarks.training")
        found = {**described, "shape": shape, "weights": bench.weights, "peak_tflops": PEAK_TFLOPS}
        found["large_products"] = products
        out.write_text(json.dumps({**found, "measured": lines}, indent=1) + "\n")


class Bench:
    """Trains setups on one base model in memory, loaded again where the quantization changes."""

    def __init__(self, folder: Path, shape: str, row_ids: list[list[int]]) -> None:
        self._folder = folder
        self._shape = shape
        self._rows = [TokenRow(line, ids, [IGNORED, *ids[1:]]) for line, ids in enumerate(row_ids)]
        self._device = find_device()
        self._loaded: tuple[Any, PreTrainedModel] | None = None
        self.weights = 0

    def measure(self, setup: Setup) -> dict[str, Any]:
        """Train a setup. Returns its line of the results."""
        try:
            return {"name": setup.name, "setup": asdict(setup), **self._train(setup)}
        # A setup may run out of memory, or ask for what this machine lacks.
        except Exception as error:
            traceback.print_exc()
            self._loaded = None  # an adapter may still be on it
            return {"name": setup.name, "setup": asdict(setup), "failure": f"{type(error).__name__}: {error}"}
        finally:
            gc.collect()
            if self._device.is_cuda:
                torch.cuda.empty_cache()

    def _train(self, setup: Setup) -> dict[str, Any]:
        spec = JobSpec.model_validate(setup.spec(self._shape))
        said: list[str] = []
        attempt = self._make_attempt(spec, said, is_alone=setup.alone)
        base = self._load(spec)
        # Earlier setups may have left checkpointing on, and hooks that require a gradient of the embeddings.
        getattr(base, f"{config.CHECKPOINTING}_disable")()
        base.get_input_embeddings()._forward_hooks.clear()
        model = adapter.attach(base, spec)
        trainer, undo = self._make_trainer(setup, attempt, model)
        timer = StepTimer(trainer, self._device.is_cuda, setup.warm_up)
        trainer.add_callback(timer)
        if self._device.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        began = time.monotonic()
        with undo, GpuMonitor() if self._device.is_cuda else nullcontext() as monitor:
            trainer.train()
        seconds = time.monotonic() - began
        model.unload()
        return {
            **self._summarize(setup, timer, trainer),
            "chip": monitor.summary() if monitor else None,
            "seconds_in_all": round(seconds, 1),
            "said": said,
        }

    def _make_trainer(
        self, setup: Setup, attempt: TrainingAttempt, model: PeftModel
    ) -> tuple[SFTTrainer, ExitStack]:
        spec, folder = attempt.request.spec, self._folder / "models" / self._shape
        rows = make_dataset(self._rows, packed_length=setup.length if setup.packing else None)
        settings = config.trainer_config(spec.training, self._device, attempt.checkpoints)
        tokenizer = description.load_tokenizer(folder)
        if setup.code == "trl":
            settings.save_strategy = "no"
            trainer = SFTTrainer(
                model=model,
                args=settings,
                train_dataset=rows,
                data_collator=Collator(tokenizer.pad_token_id),
                processing_class=tokenizer,
            )
            # The trainer's order of rows, so that every setup learns from the same ones.
            trainer._get_train_sampler = lambda *_given: AdapterTrainer._get_train_sampler(trainer)
            return trainer, ExitStack()
        trainer = run.make_trainer(
            attempt, model, tokenizer, settings, newest=None, train_set=rows, eval_set=None
        )
        path = TrainingPath.PLAIN if setup.code == "plain" else TrainingPath.AUTO
        return trainer, apply_optimizations(attempt, trainer, spec.training, path)

    def _load(self, spec: JobSpec) -> PreTrainedModel:
        quantization = automatic_settings.quantization(spec, self._device)
        if self._loaded is None or self._loaded[0] != quantization:
            self._loaded = None
            gc.collect()
            model = base_model.load_model(self._folder / "models" / self._shape, quantization, self._device)
            self._loaded = quantization, model
            self.weights = count_weights(model)
        return self._loaded[1]

    def _make_attempt(self, spec: JobSpec, said: list[str], *, is_alone: bool) -> TrainingAttempt:
        work = self._folder / "jobs" / "training"
        request = TrainingRequest(
            job_id="job_benchmark",
            attempt=1,
            spec=spec,
            dataset=self._folder,
            dataset_format=DatasetFormat.TEXT,
            dataset_sha256="",
            models_folder=self._folder / "models",
            job_folder=work,
            output_folder=work / "adapter",
            is_alone=is_alone,
        )

        def send(report: Any) -> None:
            if isinstance(report, Happened) and isinstance(report.event, Log | Warn):
                said.append(report.event.message)

        return TrainingAttempt(request, self._device, send, threading.Event())

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
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if self._device.is_cuda else None,
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "profile": timer.profile,
        }


def count_weights(model: PreTrainedModel) -> int:
    """Weights of all linear layers: the N of 4N model FLOPs for a token of QLoRA."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return sum(linear.in_features * linear.out_features for linear in linears)


def _line(line: dict[str, Any]) -> str:
    if "failure" in line:
        return f"{line['name']:32} {line['failure'][:120]}"
    peak = (line["peak_memory_bytes"] or 0) / 1e9
    profile = line["profile"] or {"count": 0, "ms": 0.0, "kind": ""}
    return (
        f"{line['name']:32}{line['ms_a_step']:9.1f} ms{line['tokens_a_step']:7} tokens"
        f"{line['tokens_per_second']:8} tokens/s{line['model_flop_share']:7.1%}{peak:7.1f} GB"
        f"{profile['count']:7} {profile['kind']}{profile['ms']:8.1f} ms"
    )


if __name__ == "__main__":
    main()
