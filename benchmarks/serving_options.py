"""The command line of benchmarks/serving.py."""

import argparse
import dataclasses
import sys
from pathlib import Path

from app.core.engine.messages import BaseModelRef
from app.core.specs.job import QuantizationSpec


@dataclasses.dataclass
class Options:
    """What to measure: the options of the command line."""

    model: Path
    adapters_folder: Path
    machine: str
    weights: str
    batches: list[int]
    adapters: list[int]
    http_adapters: list[int]
    prompt_tokens: int
    new_tokens: int
    peft_batches: list[int]
    peft_new_tokens: int
    peft_calls: int
    parts: list[str]
    prefills: list[tuple[int, int]]
    peer: str | None
    peer_python: str
    peer_memory_share: float

    @property
    def base(self) -> BaseModelRef:
        """The base model with its weights."""
        quantization = QuantizationSpec(load_in_4bit=self.weights != "full")
        return BaseModelRef(name=self.model.name, quantization=quantization)

    @property
    def keeps_4bit(self) -> bool:
        """Whether the engine computes with 4-bit weights."""
        return self.weights == "nf4-packed"

    @property
    def lengths(self) -> dict[str, int]:
        """The numbers of tokens of prompts and answers."""
        return {"prompt_tokens": self.prompt_tokens, "new_tokens": self.new_tokens}

    @property
    def adapter_folders(self) -> list[Path]:
        """The folders of all adapters that any row needs, written where they do not exist yet."""
        from benchmarks.serving_inputs import write_adapters

        count = max([8, *self.adapters, *self.http_adapters])
        return write_adapters(self.model, self.adapters_folder, count)


def _prompts_and_tokens(value: str) -> tuple[int, int]:
    prompts_at_once, _, tokens = value.partition("x")
    if not (prompts_at_once.isdecimal() and tokens.isdecimal()):
        raise argparse.ArgumentTypeError(f"{value!r} is not like 32x512, for 32 prompts of 512 tokens each")
    return int(prompts_at_once), int(tokens)


def parse(parts: list[str], *, description: str | None) -> Options:
    """The options of this process's command line. Exits where they are wrong."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="A Hugging Face folder.")
    add(
        "--adapters-folder", type=Path, help="Where the adapters are, or are made; default: beside the model."
    )
    add("--machine", required=True, help="The result's file is named after it.")
    add(
        "--weights",
        choices=["full", "nf4", "nf4-packed"],
        default="full",
        help="full: 16 bits, on a CPU 32. nf4: dequantized once.",
    )
    add("--batches", type=int, nargs="+", default=[1, 8, 32, 64, 128])
    add("--adapters", type=int, nargs="+", default=[0, 1, 8, 32])
    add("--http-adapters", type=int, nargs="+", help="Default: as --adapters.")
    add("--prompt-tokens", type=int, default=128)
    add("--new-tokens", type=int, default=256)
    add(
        "--prefills",
        type=_prompts_and_tokens,
        nargs="*",
        default=[],
        metavar="PROMPTSxTOKENS",
        help="Measure the time to the first token of so many prompts at once, of so many tokens: 32x512.",
    )
    add("--peft-batches", type=int, nargs="+", help="Default: the second smallest of --batches.")
    add("--peft-new-tokens", type=int, help="Default: as --new-tokens.")
    add("--peft-calls", type=int, default=4, help="Most calls of `generate` for a line; the rest is alike.")
    add("--parts", nargs="+", choices=parts, default=["in-process", "http", "peft"])
    add("--peer", choices=["vllm"], help="Measure the same work with vLLM after each part, and the ratios.")
    add(
        "--peer-python",
        default=sys.executable,
        help="The Python that vLLM is installed in; default: this one.",
    )
    add("--peer-memory-share", type=float, default=0.9, help="Of the GPU's memory, for vLLM.")
    given = parser.parse_args()
    given.model = given.model.absolute()
    given.adapters_folder = given.adapters_folder or given.model.parent / f".adapters-{given.model.name}"
    given.http_adapters = given.http_adapters or given.adapters
    given.peft_batches = given.peft_batches or sorted(given.batches)[:2][-1:]
    given.peft_new_tokens = given.peft_new_tokens or given.new_tokens
    return Options(**vars(given))
