"""By how much one step of the optimizer lowers the loss: in float32, in bfloat16, and with optimizations.

    python -m benchmarks.step_gain OUT                       a deep model, dense and in NF4
    python -m benchmarks.step_gain OUT --layers 2 --width 64 on a CPU, to see that it runs

In bfloat16 PEFT rounds the product of a weight before it adds what the adapter adds, so what a new adapter
adds may be lost. All runs set each B to what float32's gradient makes of it in Adam's first step, by its
sign. `first_order` is the gain by that gradient alone.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks import estimate_settings
from benchmarks.first_steps import SIX_LAYERS, Bench, Setup, optimized
from worker.training.trainer import AdapterTrainer

ROWS = 4


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=SIX_LAYERS["hidden_size"])
    parser.add_argument("--longest", type=int, default=128, help="tokens of a row")
    parser.add_argument("--folder", type=Path, default=estimate_settings.FOLDER, help="for the base model")
    options = parser.parse_args()
    shape = make_shape(options.layers, options.width)
    folder = options.folder / "step-gain" / f"{options.layers}x{options.width}"
    bench = Bench(folder, shape, steps=1, longest=options.longest)
    lines = []
    for load_in_4bit in (False, True):
        lines.append(measure(bench, Setup("llama", load_in_4bit, packing=False, dropout=0.0)))
        print(lines[-1], flush=True)
        described = estimate_settings.describe_machine("benchmarks.step_gain")
        options.out.write_text(json.dumps({**described, "shape": shape, "measured": lines}, indent=1) + "\n")


def make_shape(layers: int, width: int) -> dict[str, Any]:
    """The fields of a Llama's configuration, with heads of 64."""
    return {
        **SIX_LAYERS,
        "hidden_size": width,
        "intermediate_size": width * 11 // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 64,
    }


def measure(bench: Bench, setup: Setup) -> dict[str, Any]:
    """The gain of a setup in float32, and that of the same step without and with optimizations."""
    _attempt, exact = bench.make_trainer(setup, "float32")
    gradients = _gradients_of_b(exact)
    rate = exact.args.learning_rate
    step = {name: -rate * gradient.sign() for name, gradient in gradients.items()}
    first_order = rate * sum(float(gradient.abs().sum()) for gradient in gradients.values())
    found = {"first_order": first_order, "float32": _gain(exact, step)}
    for kind in ("plain", "optimized"):
        attempt, trainer = bench.make_trainer(setup, kind)
        with optimized(attempt, trainer, kind):
            found[kind] = _gain(trainer, step)
    return {
        "load_in_4bit": setup.load_in_4bit,
        "learning_rate": rate,
        "gain": {kind: round(one, 4) for kind, one in found.items()},
    }


def _matrices(trainer: AdapterTrainer) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in trainer.model.named_parameters() if "lora_B" in name}


def _score(trainer: AdapterTrainer) -> torch.Tensor:
    """The mean loss of the first rows, without dropout."""
    trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(ROWS)])
    scores = trainer.score(trainer._prepare_inputs(batch))
    return -scores.log_prob_sum / len(scores.log_probs_N)


def _gradients_of_b(trainer: AdapterTrainer) -> dict[str, torch.Tensor]:
    _score(trainer).backward()
    found = {name: weight.grad.clone() for name, weight in _matrices(trainer).items()}
    trainer.model.zero_grad()
    return found


@torch.no_grad()
def _gain(trainer: AdapterTrainer, step: dict[str, torch.Tensor]) -> float:
    before = float(_score(trainer))
    for name, weight in _matrices(trainer).items():
        weight.copy_(step[name])
    return before - float(_score(trainer))


if __name__ == "__main__":
    main()
