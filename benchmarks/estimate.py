"""The memory estimate against measured peaks, on models with random weights.

On a GPU, `python -m benchmarks.estimate measure OUT` trains three steps for each setting, in a fresh process
each, with the training child's own code, and writes what was measured. Anywhere, `table FILE` puts the
estimate beside the measurements and prints the table.
"""

import dataclasses
import json
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.estimate_settings import (
    FOLDER,
    MODELS,
    PADDED_SHARE,
    PROCESSES,
    SETTINGS,
    SHORT_ROW,
    STEPS,
    Setting,
    build,
    describe_machine,
)


def measure(out: Path) -> None:
    """Every setting in a process of its own, some at a time; the context's size is taken with one alone."""
    for name in MODELS:
        _call("build", name)
    context_bytes = json.loads(_call("context"))["context_bytes"]
    measured: list[dict[str, Any]] = []
    with ThreadPoolExecutor(PROCESSES) as threads:
        for line in threads.map(_measure_one, range(len(SETTINGS))):
            measured.append(line)
            found = {"context_bytes": context_bytes, "measured": measured}
            out.write_text(json.dumps({**describe_machine("benchmarks.estimate"), **found}, indent=1))


def table(path: Path) -> None:
    """Put the estimate beside every measurement, in the file, and print the table."""
    found = json.loads(path.read_text())
    context_bytes = found["context_bytes"]
    for line in found["measured"]:
        setting = next(setting for setting in SETTINGS if setting.name == line["name"])
        line["setting"] = dataclasses.asdict(setting)
        if "peak_allocated_bytes" in line:
            # The total counts the context, which PyTorch's own figure leaves out.
            memory = estimate_line(setting, line)
            line["estimate"] = {**dataclasses.asdict(memory), "total": memory.total}
            line["error"] = round(memory.total / (line["peak_allocated_bytes"] + context_bytes) - 1, 4)
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{found['device']}, torch {found['versions']['torch']}; GB, context {context_bytes / 1e9:.2f}")
    print(f"{'setting':34}{'fitted':>7}{'peak':>8}{'estimate':>10}{'error':>8}{'reserved':>10}")
    for line in found["measured"]:
        print(_line(line, context_bytes))


def _line(line: dict[str, Any], context_bytes: int) -> str:
    fitted = "yes" if line["setting"]["fitted"] else ""
    start = f"{line['name']:34}{fitted:>7}"
    if "estimate" not in line:
        return f"{start} {line['failure'][-60:]}"
    peak, reserved = line["peak_allocated_bytes"] + context_bytes, line["peak_reserved_bytes"] + context_bytes
    total = line["estimate"]["total"]
    return f"{start}{peak / 1e9:8.2f}{total / 1e9:10.2f}{line['error']:8.1%}{reserved / 1e9:10.2f}"


def _call(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.estimate", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def _measure_one(index: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.estimate", "one", str(index)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(SETTINGS[index].name, "done" if done.returncode == 0 else done.stderr[-1500:], flush=True)
    if done.returncode != 0:
        return {"name": SETTINGS[index].name, "failure": done.stderr.strip()[-1000:]}
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def _context() -> dict[str, int]:
    """What CUDA takes beside PyTorch's own allocations, once a model has run."""
    import torch

    free_before = torch.cuda.mem_get_info()[1]
    weights = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    torch.nn.functional.scaled_dot_product_attention(*[weights.view(1, 32, 4096, 128)] * 3).sum().backward()
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return {"context_bytes": min(free_before, total) - free - torch.cuda.memory_reserved()}


def _one(setting: Setting) -> dict[str, Any]:
    """Train three steps as the training child does, and say what memory it took."""
    import torch
    from trl import SFTConfig

    from app.core.datasets import DatasetFormat
    from app.core.specs import JobSpec
    from worker import base_model
    from worker.device import find_device
    from worker.reports import TrainingRequest
    from worker.training import config, run
    from worker.training.attempt import Attempt
    from worker.training.batches import make_dataset

    spec = JobSpec.model_validate(setting.spec())
    folder = FOLDER / "models" / setting.model
    work = FOLDER / "jobs" / str(SETTINGS.index(setting))
    request = TrainingRequest(
        job_id="job_benchmark",
        attempt=1,
        spec=spec,
        dataset=folder,
        dataset_format=DatasetFormat.TEXT,
        dataset_sha256="",
        models_folder=FOLDER / "models",
        job_folder=work,
        output_folder=work / "adapter",
    )
    attempt = Attempt(request, find_device(), lambda report: None, threading.Event())
    packed_length = setting.length if setting.rows == "packed" else None
    rows = make_dataset(_rows(setting), packed_length=packed_length)
    model = run.load(attempt, folder)
    loaded = torch.cuda.memory_allocated()
    peak_loading = torch.cuda.max_memory_allocated()
    settings: SFTConfig = config.trainer_config(spec.training, attempt.device, work / "checkpoints")
    trainer = run.make_trainer(
        attempt,
        model,
        base_model.load_tokenizer(folder),
        settings,
        newest=None,
        train_set=rows,
        eval_set=None,
    )
    watch = Watch(trainer)
    torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    trainer.train()
    torch.cuda.synchronize()
    return {
        "name": setting.name,
        "peak_allocated_bytes": max(*watch.peaks, torch.cuda.max_memory_allocated()),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        "peak_loading_bytes": peak_loading,
        "loaded_bytes": loaded,
        "batch_shapes": watch.shapes,
        "scored_tokens": max(entry["scored"] for entry in watch.passes),
        "passes": watch.passes,
        "seconds": round(time.monotonic() - began, 2),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


class Watch:
    """Reads the allocator before and after the forward and the backward pass of every batch."""

    def __init__(self, trainer: Any) -> None:
        self.passes: list[dict[str, int]] = []
        self.shapes: list[tuple[int, ...]] = []
        self.peaks: list[int] = []
        self._compute_loss, self._training_step = trainer.compute_loss, trainer.training_step
        trainer.compute_loss, trainer.training_step = self._forward, self._whole

    def _forward(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        import torch

        self._take_peak()
        before = torch.cuda.memory_allocated()
        scored = int((inputs["labels"][:, 1:] != -100).sum())
        self.shapes.append(tuple(inputs["input_ids"].shape))
        loss = self._compute_loss(model, inputs, *args, **kwargs)
        after = torch.cuda.memory_allocated()
        entry = {"before": before, "after_forward": after, "scored": scored}
        self.passes.append({**entry, "forward_peak": self._take_peak()})
        return loss

    def _whole(self, *args: Any, **kwargs: Any) -> Any:
        loss = self._training_step(*args, **kwargs)
        self.passes[-1]["backward_peak"] = self._take_peak()
        return loss

    def _take_peak(self) -> int:
        """The peak since the last call."""
        import torch

        self.peaks.append(torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()
        return self.peaks[-1]


def _rows(setting: Setting) -> list[Any]:
    from worker.formatting import IGNORED, TokenRow

    draw = random.Random(0)
    count = STEPS * setting.batch * setting.accumulation
    if setting.rows == "packed":
        count *= setting.length // SHORT_ROW
    lengths = [setting.length] * count
    if setting.rows == "ragged":
        low = int(setting.length * PADDED_SHARE)
        lengths = [
            setting.length if index % setting.batch == 0 else draw.randint(low, setting.length)
            for index in range(count)
        ]
    if setting.rows == "packed":
        lengths = [draw.randint(SHORT_ROW // 3, SHORT_ROW * 5 // 3) for _ in range(count)]
    rows = []
    for line, length in enumerate(lengths, start=1):
        ids = [draw.randrange(3, 30_000) for _ in range(length)]
        rows.append(TokenRow(line, ids, [IGNORED, *ids[1:]]))
    return rows


def estimate_line(setting: Setting, line: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from app.core.specs import JobSpec
    from worker import choices
    from worker.device import Device
    from worker.estimate import Batch, estimate
    from worker.model_shape import shape_of

    device = Device(kind="cuda", name="", memory_bytes=0, supports_bf16=True, torch_version=torch.__version__)
    spec = JobSpec.model_validate(setting.spec())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**MODELS[setting.model]))
    shape = shape_of(model, spec.lora)
    sequences, length = max(line["batch_shapes"], key=lambda shape: shape[0] * shape[1])
    batch = Batch(sequences, length, line["scored_tokens"], has_mask=setting.rows != "equal")
    return estimate(shape, choices.make_plan(spec, device, checkpointing=setting.checkpointing), batch)


def main() -> None:
    """Run what the first argument names."""
    command, *arguments = sys.argv[1:]
    match command:
        case "measure":
            measure(Path(arguments[0]))
        case "table":
            table(Path(arguments[0]))
        case "build":
            build(arguments[0])
        case "context":
            print(json.dumps(_context()))
        case "one":
            print(json.dumps(_one(SETTINGS[int(arguments[0])])))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
