"""Training steps of a 7B shape with random weights in NF4, and of plain TRL: time, tokens, memory, kernels.

    python -m benchmarks.training OUT                                 every setup, one after the other
    python -m benchmarks.training OUT --setups recipe "packed, r 64"  some of them
    python -m benchmarks.training OUT --shape qwen3-8b --setups "packed, plain" packed
    python -m benchmarks.training OUT --shape tiny --steps 3          on a CPU, to see that it runs
    python -m benchmarks.training OUT --gpus 2                        one GPU, then two (several_gpus.py)
    python -m benchmarks.training OUT --gpus 2 --shape llama-70b --layers 40 --batch 1 --checkpointing

The base model is loaded once; each setup puts an adapter on it, trains some steps of the same rows with the
same seed, and takes it off. `OUT` is written after each setup, so what was measured is there if time ends.
The figures count real tokens: padding left out.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import estimate_settings, several_gpus
from benchmarks.gpu_monitor import measure_products
from benchmarks.training_bench import PEAK_TFLOPS, Bench
from benchmarks.training_setups import MAX_ROW_TOKENS, ROWS, SETUPS, SHAPES, Setup, draw_rows


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
    parser.add_argument("--gpus", type=int, help="measure 1, 2, 4 ... up to so many, with the same rows")
    parser.add_argument("--layers", type=int, help="with --gpus: of the shape, in place of its own")
    parser.add_argument("--batch", type=int, default=4, help="with --gpus: rows in a pass")
    parser.add_argument("--checkpointing", action="store_true", help="with --gpus: compute activations twice")
    options = parser.parse_args()
    if options.gpus:
        shape = SHAPES[options.shape]
        several_gpus.measure(
            options.out,
            several_gpus.make_setups(
                batch=options.batch, checkpointing=options.checkpointing, steps=options.steps or 16
            ),
            gpus=options.gpus,
            shape=options.shape,
            fields=shape | ({"num_hidden_layers": options.layers} if options.layers else {}),
            rows=options.rows,
            longest=options.longest,
            folder=options.folder,
            seconds=options.seconds,
        )
        return
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


def _line(line: dict[str, Any]) -> str:
    if "failure" in line:
        return f"{line['name']:32} {line['failure'][:120]}"
    peak = line["peak_memory_bytes"] / 1e9
    profile = line["profile"] or {"count": 0, "ms": 0.0, "kind": ""}
    return (
        f"{line['name']:32}{line['ms_a_step']:9.1f} ms{line['tokens_a_step']:7} tokens"
        f"{line['tokens_per_second']:8} tokens/s{line['model_flop_share']:7.1%}{peak:7.1f} GB"
        f"{profile['count']:7} {profile['kind']}{profile['ms']:8.1f} ms"
    )


if __name__ == "__main__":
    main()
