"""How far the losses of a job's first steps in bfloat16 are from float32's, with and without optimizations.

    python -m benchmarks.first_steps OUT                              on a GPU: every family and kind of batch
    python -m benchmarks.first_steps OUT --families llama qwen2       some of them
    python -m benchmarks.first_steps OUT --shape tiny --steps 4       on a CPU, to see that it runs

Each setup trains the same rows three times from the same seed: in float32 without optimizations, in
bfloat16 without, and in bfloat16 with all that apply. `OUT` is written after each setup. `ratio` is the
optimized run's distance from float32 as a share of the plain one's (root mean square over the steps);
`first_steps_ratio` is the same of the first 10. A single step's distance is a draw of rounding, 0 in places,
so `steps_over` are the steps whose distance exceeds 1.5 times the largest of the plain run's.
Under dropout a GPU draws other masks in each run, so distances are mostly those of the masks.
"""

import argparse
import dataclasses
import itertools
import json
import math
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from app.core.settings import TrainingPath
from app.core.specs.job import JobSpec
from benchmarks import estimate_settings
from benchmarks.training_setups import TINY, draw_rows, make_request
from worker.models import base_model
from worker.models.device import find_device
from worker.models.files import description
from worker.planning import automatic_settings
from worker.templates.choice import TemplateSource
from worker.templates.token_rows import IGNORED, TokenRow
from worker.training import adapter
from worker.training.attempt import TrainingAttempt
from worker.training.construction import make_trainer
from worker.training.optimizations.apply import apply_optimizations, make_plan
from worker.training.rows import PreparedRows
from worker.training.trainer import AdapterTrainer

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3")
MAX_RATIO = 1.5
STEPS = 50
SIX_LAYERS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 4096,
}
SHAPES = {"six-layers": SIX_LAYERS, "tiny": {**TINY, "head_dim": 16}}

Kind = Literal["float32", "plain", "optimized"]


@dataclasses.dataclass(frozen=True)
class Setup:
    """One line of the results."""

    family: str
    load_in_4bit: bool
    packing: bool
    dropout: float

    def spec(self, kind: Kind, *, steps: int, length: int, seed: int) -> JobSpec:
        """The job that one of its runs trains."""
        dtype = "float32" if kind == "float32" else "bfloat16"
        return JobSpec.model_validate(
            {
                "base_model": self.family,
                "dataset": "ds_benchmark",
                "lora": {"r": 16, "alpha": 16, "dropout": self.dropout, "target_modules": "all-linear"},
                "quantization": {"load_in_4bit": self.load_in_4bit, "bnb_4bit_compute_dtype": dtype},
                "training": {
                    "bf16": kind != "float32",
                    "fp16": False,
                    "per_device_train_batch_size": 2 if self.packing else 8,
                    "gradient_checkpointing": False,
                    "optim": "adamw_torch",
                    "packing": self.packing,
                    "max_seq_length": length,
                    "max_steps": steps,
                    "seed": seed,
                    "save_steps": 100_000,
                },
            }
        )


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--shape", choices=SHAPES, default="six-layers")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=42, help="of the adapter's start and the order of rows")
    parser.add_argument("--longest", type=int, default=1024, help="tokens of a row, and of a packed sequence")
    parser.add_argument("--folder", type=Path, default=estimate_settings.FOLDER, help="for the base models")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    folder = options.folder / "first-steps" / options.shape
    bench = Bench(folder, shape, steps=options.steps, longest=options.longest, seed=options.seed)
    lines = []
    for setup in list_setups(options.families):
        lines.append(bench.measure(setup))
        print(_line(lines[-1]), flush=True)
        described = estimate_settings.describe_machine("benchmarks.first_steps")
        found = {
            **described,
            "shape": options.shape,
            "seed": options.seed,
            "max_ratio": MAX_RATIO,
            "measured": lines,
        }
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def list_setups(families: tuple[str, ...]) -> Iterator[Setup]:
    """Every kind of base model and batch, family by family."""
    for family, load_in_4bit, packing, dropout in itertools.product(
        families, (False, True), (False, True), (0.0, 0.1)
    ):
        yield Setup(family, load_in_4bit, packing, dropout)


class Bench:
    """Trains setups on models with random weights, which are written to `folder`."""

    def __init__(
        self, folder: Path, shape: dict[str, Any], *, steps: int, longest: int, seed: int = 42
    ) -> None:
        self._folder = folder
        self._shape = shape
        self._steps = steps
        self._seed = seed
        self._longest = longest
        self._device = find_device()
        count = steps * (8 if longest < 256 else 16)
        ids = draw_rows(count, shape["vocab_size"], longest=longest)
        self._rows = [TokenRow(line, row, [IGNORED, *row[1:]]) for line, row in enumerate(ids)]

    def measure(self, setup: Setup) -> dict[str, Any]:
        """Train a setup three times. Returns its line of the results."""
        losses = {kind: self._train(setup, kind) for kind in ("float32", "plain", "optimized")}
        plain, optimized = (
            [abs(one - exact) for one, exact in zip(losses[kind], losses["float32"], strict=True)]
            for kind in ("plain", "optimized")
        )
        over = [step for step, found in enumerate(optimized, 1) if found > MAX_RATIO * max(plain)]
        return {
            **dataclasses.asdict(setup),
            "ratio": _ratio(optimized, plain),
            "first_steps_ratio": _ratio(optimized[:10], plain[:10]),
            "steps_over": over,
            "losses": losses,
        }

    def _write_model(self, family: str) -> None:
        folder = self._folder / family
        if folder.exists():
            return
        kind = type(AutoConfig.for_model(family))
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(kind(**self._shape, pad_token_id=0), dtype=torch.bfloat16)
        model.save_pretrained(folder)
        estimate_settings.make_tokenizer().save_pretrained(folder)

    def make_trainer(self, setup: Setup, kind: Kind) -> tuple[TrainingAttempt, AdapterTrainer]:
        """A trainer of a setup as a job has it, without optimizations yet. Writes its base model first."""
        self._write_model(setup.family)
        spec = setup.spec(kind, steps=self._steps, length=self._longest, seed=self._seed)
        attempt = self._make_attempt(spec)
        folder = self._folder / setup.family
        base = base_model.load_model(
            folder, automatic_settings.quantization(spec, self._device), self._device
        )
        trainer = make_trainer(
            attempt,
            adapter.attach(base, spec),
            description.load_tokenizer(folder),
            PreparedRows(self._rows, [], [], TemplateSource.MODEL),
            spec.training,
            packed_length=self._longest if setup.packing else None,
            newest=None,
        )
        return attempt, trainer

    def _train(self, setup: Setup, kind: Kind) -> list[float]:
        attempt, trainer = self.make_trainer(setup, kind)
        losses: list[torch.Tensor] = []
        compute = trainer.training_step

        def record(*given: Any, **named: Any) -> torch.Tensor:
            losses.append(compute(*given, **named).detach())
            return losses[-1]

        with optimized(attempt, trainer, kind):
            trainer.training_step = record
            trainer.train()
        return [float(loss) for loss in losses]

    def _make_attempt(self, spec: JobSpec) -> TrainingAttempt:
        folder = self._folder
        request = make_request(spec, dataset=folder, models_folder=folder, job_folder=folder / "job")
        return TrainingAttempt(request, self._device, lambda report: None, threading.Event())


def optimized(attempt: TrainingAttempt, trainer: AdapterTrainer, kind: Kind) -> AbstractContextManager[Any]:
    """Within this context a trainer has the optimizations that apply, if its kind is to have them."""
    path = TrainingPath.AUTO if kind == "optimized" else TrainingPath.PLAIN
    plan = make_plan(attempt, trainer.model.get_base_model(), attempt.request.spec.training, path)
    return apply_optimizations(attempt, trainer, plan)


def _root_mean_square(values: list[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))


def _ratio(found: list[float], expected: list[float]) -> float:
    whole = _root_mean_square(expected)
    return round(_root_mean_square(found) / whole, 3) if whole else math.inf


def _line(line: dict[str, Any]) -> str:
    weights = "nf4" if line["load_in_4bit"] else "dense"
    batches = "packed" if line["packing"] else "rows"
    verdict = "as near as plain" if line["ratio"] <= MAX_RATIO and not line["steps_over"] else "FARTHER"
    return (
        f"{line['family']:12} {weights:6} {batches:7} dropout {line['dropout']:.1f}"
        f"{line['ratio']:8.2f} times plain, {len(line['steps_over'])} steps over: {verdict}"
    )


if __name__ == "__main__":
    main()
