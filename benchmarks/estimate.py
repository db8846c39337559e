"""The memory estimate against measured peaks, and the reference recipe, on models with random weights.

On a GPU: `python -m benchmarks.estimate measure OUT` trains three steps for each setting, in a fresh process
each, with the training child's own code, and writes what was measured; `recipe OUT` runs the recipe through
the child itself. Anywhere: `table FILE` puts the estimate beside the measurements and prints the table.
"""

import dataclasses
import importlib.metadata
import json
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

FOLDER = Path("/dev/shm/tunesmith-benchmark")
STEPS = 3
PROCESSES = 3
PADDED_SHARE = 0.5  # ragged rows are between so much of the length and all of it
SHORT_ROW = 166  # the mean row of TRAINING.md's data, for packing

SEVEN_B: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
GROUPED_1B: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
MODELS = {"llama-7b": SEVEN_B, "llama-1b-grouped": GROUPED_1B}


@dataclasses.dataclass(frozen=True)
class Setting:
    """One line of the table."""

    name: str
    fitted: bool  # whether the estimate's constants were fitted to it
    batch: int
    length: int
    rows: str  # equal, ragged or packed
    checkpointing: bool
    r: int = 64
    targets: str = "q,v"
    dropout: float = 0.1
    optim: str = "paged_adamw_32bit"
    accumulation: int = 1
    model: str = "llama-7b"
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    quantization: dict[str, Any] = dataclasses.field(default_factory=dict)

    def spec(self) -> dict[str, Any]:
        """The job."""
        targets = self.targets if self.targets == "all-linear" else ["q_proj", "v_proj"]
        return {
            "base_model": self.model,
            "dataset": "ds_benchmark",
            "lora": {"r": self.r, "dropout": self.dropout, "target_modules": targets},
            "quantization": self.quantization,
            "training": {
                "per_device_train_batch_size": self.batch,
                "gradient_accumulation_steps": self.accumulation,
                "gradient_checkpointing": self.checkpointing,
                "optim": self.optim,
                "max_steps": STEPS,
                "max_seq_length": self.length,
                "packing": self.rows == "packed",
                "logging_steps": 1,
                "save_steps": 1000,
                **self.training,
            },
        }


RECIPE_FP16 = {"fp16": True, "bf16": False}
SETTINGS = [
    Setting("recipe", True, 4, 512, "ragged", False),
    Setting("recipe, checkpointed", True, 4, 512, "ragged", True),
    Setting(
        "one long row",
        True,
        1,
        2048,
        "equal",
        False,
        r=8,
        targets="all-linear",
        dropout=0,
        optim="adamw_torch",
    ),
    Setting("all linear", True, 2, 1024, "ragged", False, targets="all-linear", optim="adamw_torch"),
    Setting(
        "all linear, checkpointed", True, 2, 1024, "ragged", True, targets="all-linear", optim="adamw_torch"
    ),
    Setting("packed", True, 4, 2048, "packed", False, r=8),
    Setting("packed, checkpointed", True, 4, 2048, "packed", True, r=8),
    Setting("fp16", True, 4, 512, "ragged", False, training=RECIPE_FP16),
    Setting("packed, all linear", False, 4, 1024, "packed", False, r=8, targets="all-linear", dropout=0.05),
    Setting("one long row, checkpointed", False, 1, 2048, "equal", True),
    Setting("packed, all linear, checkpointed", False, 4, 2048, "packed", True, targets="all-linear"),
    Setting("accumulating", False, 2, 512, "ragged", False, r=8, optim="adamw_torch_fused", accumulation=2),
    Setting(
        "fp16 over bfloat16",
        False,
        4,
        512,
        "ragged",
        False,
        training=RECIPE_FP16,
        quantization={"bnb_4bit_compute_dtype": "bfloat16"},
    ),
    Setting(
        "unquantized",
        False,
        2,
        1024,
        "ragged",
        False,
        r=16,
        targets="all-linear",
        quantization={"load_in_4bit": False},
    ),
    Setting(
        "small card",
        False,
        1,
        512,
        "equal",
        True,
        optim="paged_adamw_8bit",
        quantization={"bnb_4bit_use_double_quant": True},
    ),
    Setting("small card, 2,048 tokens", False, 1, 2048, "equal", True, r=16, targets="all-linear"),
    Setting(
        "grouped heads", False, 4, 1024, "ragged", False, r=16, targets="all-linear", model="llama-1b-grouped"
    ),
    Setting(
        "grouped heads, checkpointed",
        False,
        4,
        1024,
        "ragged",
        True,
        r=16,
        targets="all-linear",
        model="llama-1b-grouped",
    ),
]


def measure(out: Path) -> None:
    """Every setting in a process of its own, some at a time; the context's size is taken with one alone."""
    for name in MODELS:
        _call("build", name)
    context_bytes = json.loads(_call("context"))["context_bytes"]
    measured: list[dict[str, Any]] = []
    with ThreadPoolExecutor(PROCESSES) as threads:
        for line in threads.map(_measure_one, range(len(SETTINGS))):
            measured.append(line)
            found = {**_machine(), "context_bytes": context_bytes, "measured": measured}
            out.write_text(json.dumps(found, indent=1))


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


def recipe(out: Path) -> None:
    """The recipe as written, with fp16 and with bf16, twenty steps each, through the training child."""
    _call("build", "llama-7b")
    rows = FOLDER / "rows.jsonl"
    rows.write_bytes(b"".join(_short_chats(80)))
    runs = [_run_child(rows, name) for name in ("fp16", "bf16")]
    out.write_text(json.dumps({**_machine(), "runs": runs}, indent=1) + "\n")
    for run in runs:
        print({name: value for name, value in run.items() if name != "losses"}, run["losses"][-3:])


def _line(line: dict[str, Any], context_bytes: int) -> str:
    fitted = "yes" if line["setting"]["fitted"] else ""
    start = f"{line['name']:34}{fitted:>7}"
    if "estimate" not in line:
        return f"{start} {line['failure'][-60:]}"
    peak, reserved = line["peak_allocated_bytes"] + context_bytes, line["peak_reserved_bytes"] + context_bytes
    total = line["estimate"]["total"]
    return f"{start}{peak / 1e9:8.2f}{total / 1e9:10.2f}{line['error']:8.1%}{reserved / 1e9:10.2f}"


def _machine() -> dict[str, Any]:
    import torch

    names = ["torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate"]
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "versions": {name: importlib.metadata.version(name) for name in names},
        "python": sys.version.split()[0],
        "command": " ".join(["python -m benchmarks.estimate", *sys.argv[1:]]),
        "at": time.strftime("%Y-%m-%d"),
    }


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


def _build(name: str) -> None:
    """The checkpoint and its tokenizer, unless they are there."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = FOLDER / "models" / name
    if folder.is_dir():
        return
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM._from_config(LlamaConfig(**MODELS[name]), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    _make_tokenizer().save_pretrained(folder)


def _make_tokenizer() -> Any:
    """Bytes as tokens: any text can be read, and no word list is needed."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    words = {text: place for place, text in enumerate(special + pre_tokenizers.ByteLevel.alphabet())}
    backend = Tokenizer(models.BPE(vocab=words, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


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
    steps: list[dict[str, int]] = []
    shapes: list[tuple[int, ...]] = []
    between: list[int] = []
    compute_loss = trainer.compute_loss

    def watched(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(inputs["input_ids"].shape))
        between.append(torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        scored = int((inputs["labels"][:, 1:] != -100).sum())
        loss = compute_loss(model, inputs, *args, **kwargs)
        steps.append(
            {
                "before": before,
                "forward_peak": torch.cuda.max_memory_allocated(),
                "after_forward": torch.cuda.memory_allocated(),
                "scored": scored,
            }
        )
        torch.cuda.reset_peak_memory_stats()
        return loss

    step = trainer.training_step

    def whole(*args: Any, **kwargs: Any) -> Any:
        loss = step(*args, **kwargs)
        steps[-1]["backward_peak"] = torch.cuda.max_memory_allocated()
        steps[-1]["after_backward"] = torch.cuda.memory_allocated()
        return loss

    trainer.compute_loss, trainer.training_step = watched, whole
    torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    trainer.train()
    torch.cuda.synchronize()
    peaks = [entry[name] for entry in steps for name in ("forward_peak", "backward_peak")]
    return {
        "name": setting.name,
        "peak_allocated_bytes": max(*peaks, *between, torch.cuda.max_memory_allocated()),
        "between_bytes": between,
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        "peak_loading_bytes": peak_loading,
        "loaded_bytes": loaded,
        "batch_shapes": shapes,
        "scored_tokens": max(entry["scored"] for entry in steps),
        "steps": steps,
        "seconds": round(time.monotonic() - began, 2),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


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
    shape = shape_of(model, choices.lora_config(spec.lora))
    sequences, length = max(line["batch_shapes"], key=lambda shape: shape[0] * shape[1])
    batch = Batch(sequences, length, line["scored_tokens"], has_mask=setting.rows != "equal")
    return estimate(shape, choices.make_plan(spec, device, checkpointing=setting.checkpointing), batch)


def _short_chats(count: int) -> list[bytes]:
    """Rows as short as those of the recipe's own data: a question of one line and a short answer."""
    draw = random.Random(0)
    rows = []
    for index in range(count):
        question = f"How do I list file number {index}?"
        answer = "Use ls -l. " * draw.randint(3, 20)
        text = f"<s>[INST] {question} [/INST] {answer}</s>"
        rows.append(json.dumps({"text": text}).encode() + b"\n")
    return rows


def _run_child(rows: Path, precision: str) -> dict[str, Any]:
    from app.core.datasets import DatasetFormat
    from app.core.events import Metrics
    from app.core.specs import JobSpec
    from worker.child_process import ChildProcess
    from worker.reports import Ended, Happened, TrainingRequest, report_adapter

    training = {"fp16": precision == "fp16", "bf16": precision == "bf16", "gradient_checkpointing": False}
    spec = JobSpec.model_validate(
        {
            "base_model": "llama-7b",
            "dataset": "ds_benchmark",
            "training": {**training, "logging_steps": 1},
        }
    )
    work = FOLDER / "jobs" / precision
    request = TrainingRequest(
        job_id="job_recipe",
        attempt=1,
        spec=spec,
        dataset=rows,
        dataset_format=DatasetFormat.TEXT,
        dataset_sha256="",
        models_folder=FOLDER / "models",
        job_folder=work,
        output_folder=work / "adapter",
    )
    began = time.monotonic()
    child = ChildProcess("worker.training.run", request, work / "attempt.log")
    metrics: list[Metrics] = []
    ended = None
    while (line := child.reports.get(timeout=300)) is not None:
        report = report_adapter.validate_json(line)
        if isinstance(report, Happened) and isinstance(report.event, Metrics):
            metrics.append(report.event)
        ended = report if isinstance(report, Ended) else ended
    seconds = time.monotonic() - began
    child.close()
    outcome = ended.model_dump(mode="json") if ended else child.log_tail()
    files = sorted(path.name for path in request.output_folder.glob("*"))
    return {
        "precision": precision,
        "outcome": outcome,
        "steps": metrics[-1].step if metrics else 0,
        "losses": [metric.loss for metric in metrics],
        "tokens": metrics[-1].tokens if metrics else 0,
        "tokens_per_second": metrics[-1].tokens_per_second if metrics else None,
        "peak_memory_bytes": max((metric.memory_bytes or 0 for metric in metrics), default=0),
        "seconds_in_all": round(seconds, 1),
        "files": files,
        "spec": spec.model_dump(mode="json"),
    }


def main() -> None:
    """Run what the first argument names."""
    command, *arguments = sys.argv[1:]
    match command:
        case "measure":
            measure(Path(arguments[0]))
        case "recipe":
            recipe(Path(arguments[0]))
        case "table":
            table(Path(arguments[0]))
        case "build":
            _build(arguments[0])
        case "context":
            print(json.dumps(_context()))
        case "one":
            print(json.dumps(_one(SETTINGS[int(arguments[0])])))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
