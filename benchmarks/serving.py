"""Measures serving in process, through HTTP, and PEFT's `generate` for comparison, in one run.

    python -m benchmarks.serving --model data/models/SmolLM2-135M-Instruct --machine cpu-2-cores

With `--peer vllm`, vLLM does the same work afterwards, in process and through its OpenAI server, and the
ratios to it are printed: `--peer-python` names the Python that it is installed in. `--parts speculation`
measures answers that quote their prompt, and others, with drafts and without, on a model that answers in
words; `--parts copies` the same on one with random weights, which is made to copy (serving_speculation.py).
`--parts steps` lists the kernels of decode steps.

Writes `benchmarks/results/serving-<machine>.json` after each line of its table. Each part runs in a process
of its own, so that the device is free again for the next: greedy answers of so many tokens to distinct random
prompts, adapters with random weights (r=16, all linear layers) in turn, prefill included in every rate. PEFT
answers one adapter after another: with a call of `generate` for each client, and with one for each adapter.
"""

import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.core.settings import EngineWeights
from benchmarks.estimate_settings import describe_machine
from benchmarks.serving_options import Options, parse
from benchmarks.timings import measure_prefill

if TYPE_CHECKING:
    from benchmarks.serving_engine import Bench
    from benchmarks.serving_vllm import VllmBench

_RESULTS = Path(__file__).parent / "results"
_SYSTEM_TOKENS = 400
_QUESTION_TOKENS = 32
_REUSE_CLIENTS = 8
_REUSE_NEW_TOKENS = 16
_DRAFT_REPEATS = 3

Row = dict[str, Any]


def in_process(options: Options) -> Iterator[Row]:
    """Measure the engine alone, and the cost of a shared system prompt and of distinct ones."""
    from benchmarks.random_prompts import prompts
    from benchmarks.serving_engine import Bench

    folders = options.adapter_folders[: max([1, *options.adapters])]
    four_bits = options.base.quantization.load_in_4bit
    bench = Bench(options.model, load_in_4bit=four_bits, adapters=folders, keeps_4bit=options.keeps_4bit)
    yield {"part": "start", "seconds_to_ready": round(bench.ready_seconds, 1)}
    bench.run(2, 1, prompt_tokens=8, new_tokens=4)
    for adapters in options.adapters:
        for batch in _at_least(options.batches, adapters):
            # Every adapter is on the device before the clock starts; loading one is a line of its own.
            bench.run(max(1, adapters), adapters, prompt_tokens=2, new_tokens=2)
            yield {"part": "in process", **bench.run(batch, adapters, **options.lengths)}
    yield from _prefill(options, bench)
    system, *others = prompts(1 + _REUSE_CLIENTS, _SYSTEM_TOKENS, bench.vocabulary_size)
    questions = prompts(_REUSE_CLIENTS, _QUESTION_TOKENS, bench.vocabulary_size)
    bench.answer([system], 1, 1)
    for name, systems in (("distinct", others), ("shared", [system] * _REUSE_CLIENTS)):
        texts = [one + question for one, question in zip(systems, questions, strict=True)]
        found = bench.answer(texts, 1, _REUSE_NEW_TOKENS)
        yield {"part": "prefix reuse", "system prompts": name, "clients": _REUSE_CLIENTS, **found}


def _prefill(options: Options, bench: "Bench") -> Iterator[Row]:
    """Measure the time to the first token of long prompts, without an adapter and with one."""
    for adapters in (0, 1):
        for batch, tokens in options.prefills:
            answer = partial(bench.run, batch, adapters, prompt_tokens=tokens, new_tokens=2)
            yield {
                "part": "prefill",
                "batch": batch,
                "adapters": adapters,
                "prompt_tokens": tokens,
                **measure_prefill(answer),
            }


def through_http(options: Options) -> Iterator[Row]:
    """Measure a running API and engine through HTTP."""
    from benchmarks.serving_box import ServingBox, Setup
    from benchmarks.serving_http import HttpBench
    from worker.models.files.description import load_tokenizer

    folders = options.adapter_folders
    names = [folder.name for folder in folders]
    setup = Setup(
        options.base,
        options.model.parent,
        options.adapters_folder,
        names,
        "benchmarks.endless_engine",
        adapter_slots=len(names),
        weights=EngineWeights.FOUR_BIT if options.keeps_4bit else EngineWeights.SIXTEEN_BIT,
    )
    with tempfile.TemporaryDirectory() as scratch, ServingBox(setup, Path(scratch)) as box:
        bench = HttpBench(box, options.base, names, len(load_tokenizer(options.model)))
        yield {"part": "http start", **bench.start()}
        yield {"part": "cold adapter", **bench.cold_adapters(options.prompt_tokens)}
        for adapters in options.http_adapters:
            for batch in _at_least(options.batches, adapters):
                yield {"part": "http", **bench.row(batch, adapters, **options.lengths)}


def with_peft(options: Options) -> Iterator[Row]:
    """Measure PEFT, the baseline."""
    from benchmarks.serving_peft import PeftBench

    bench = PeftBench(options.model, options.base, options.adapter_folders[: max([1, *options.adapters])])
    lengths = {"prompt_tokens": options.prompt_tokens, "new_tokens": options.peft_new_tokens}
    for adapters in options.adapters:
        for batch in _at_least(options.peft_batches, adapters):
            for row in bench.rows(batch, adapters, **lengths, max_calls=options.peft_calls):
                yield {"part": "peft", **row}


def vllm_in_process(options: Options) -> Iterator[Row]:
    """Measure vLLM alone on the lines of `in_process`."""
    from worker.models.files.description import read_config

    vocabulary_size = read_config(options.model).get_text_config().vocab_size
    yield from _vllm(options).in_process(_lines(options.batches, options.adapters), vocabulary_size)


def vllm_through_http(options: Options) -> Iterator[Row]:
    """Measure vLLM's server on the lines of `through_http`, with the same clients."""
    from worker.models.files.description import load_tokenizer

    lines = _lines(options.batches, options.http_adapters)
    yield from _vllm(options).through_http(lines, len(load_tokenizer(options.model)))


def _vllm(options: Options) -> "VllmBench":
    from benchmarks.serving_vllm import VllmBench

    count = max(1, *options.adapters, *options.http_adapters)
    return VllmBench(
        options.peer_python,
        options.model,
        options.adapter_folders[:count],
        is_4bit=options.keeps_4bit,
        memory_share=options.peer_memory_share,
        prefills=options.prefills,
        **options.lengths,
    )


def with_drafts(options: Options) -> Iterator[Row]:
    """Measure answers that quote their prompt, and others, with ENGINE_SPECULATION off and on."""
    from benchmarks.serving_engine import Bench
    from benchmarks.serving_speculation import answers

    four_bits = options.base.quantization.load_in_4bit
    bench = Bench(options.model, load_in_4bit=four_bits, adapters=[], keeps_4bit=options.keeps_4bit)
    for row in answers(options.model, bench, options.new_tokens, _DRAFT_REPEATS):
        yield {"part": "speculation", **row}


def with_copies(options: Options) -> Iterator[Row]:
    """Measure answers that copy their prompt in part, with ENGINE_SPECULATION off and on; 16 bits only."""
    from benchmarks.serving_engine import Bench
    from benchmarks.serving_speculation import copies, make_copying

    successors: list[int] = []
    bench = Bench(
        options.model,
        load_in_4bit=False,
        adapters=[],
        prepare=lambda model: successors.extend(make_copying(model)),
    )
    for row in copies(bench, successors, options.batches, options.new_tokens, _DRAFT_REPEATS):
        yield {"part": "copies", **row}


def steps(options: Options) -> Iterator[Row]:
    """Measure which kernels the decode steps spend their time in."""
    from benchmarks.serving_engine import Bench
    from benchmarks.serving_steps import copy_bandwidth, measure_steps

    yield {"part": "memory", "copy_terabytes_per_second": copy_bandwidth()}
    folders = options.adapter_folders[: max([1, *options.adapters])]
    four_bits = options.base.quantization.load_in_4bit
    bench = Bench(options.model, load_in_4bit=four_bits, adapters=folders, keeps_4bit=options.keeps_4bit)
    for batch, adapters in _lines(options.batches, options.adapters):
        # Every adapter is on the device before.
        bench.run(max(1, adapters), adapters, prompt_tokens=2, new_tokens=2)
        yield {"part": "step", "rows": batch, "adapters": adapters, **measure_steps(bench, batch, adapters)}


PARTS: dict[str, Callable[[Options], Iterator[Row]]] = {
    "in-process": in_process,
    "http": through_http,
    "peft": with_peft,
    "speculation": with_drafts,
    "copies": with_copies,
    "steps": steps,
}
# Of each part, the part that measures the same work with vLLM.
_PEER_PARTS: dict[str, Callable[[Options], Iterator[Row]]] = {
    "in-process": vllm_in_process,
    "http": vllm_through_http,
}


def main() -> None:
    """The command line."""
    options = parse(list(PARTS), description=__doc__)
    # As for the worker's engine: threads that spin while they wait make a busy machine many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    path = _RESULTS / f"serving-{options.machine}.json"
    settings = {
        name: value
        for name, value in vars(options).items()
        if not isinstance(value, Path) and name != "peer_python"
    }
    found = {
        **describe_machine("benchmarks.serving"),
        "model": options.model.name,
        "load_at_start": os.getloadavg()[0],
        "settings": settings,
        "ratios": {},
        "rows": [],
    }
    if options.peer:
        found["vllm"] = _vllm(options).version()
    began = time.perf_counter()
    parts = [(part, PARTS[part]) for part in options.parts]
    if options.peer:
        parts += [(f"{part} of vLLM", _PEER_PARTS[part]) for part in options.parts if part in _PEER_PARTS]
    for part, measure in parts:
        for row in _in_a_process(part, measure, options):
            found["rows"].append(row)
            found["ratios"] = _ratios(found["rows"])
            path.write_text(json.dumps(found, indent=1) + "\n")
            print(f"{time.perf_counter() - began:6.0f} s  {_line(row)}", flush=True)
    found["load_at_end"] = os.getloadavg()[0]
    path.write_text(json.dumps(found, indent=1) + "\n")
    for name, value in found["ratios"].items():
        print(f"{name}: {value}")
    print(path)


def _ratios(rows: list[Row]) -> dict[str, float]:
    """Rates of HTTP relative to in process, and of both to PEFT, for the same work."""
    rates = {
        (row["part"], row.get("how", ""), row["batch"], row["adapters"]): row["tokens_per_second"]
        for row in rows
        if "batch" in row and "tokens_per_second" in row
    }
    found = {}
    for (part, _, batch, adapters), rate in rates.items():
        for (other, how, *work), base in rates.items():
            if work == [batch, adapters] and (part, other) in _COMPARED:
                name = f"{part} / {other}{', ' + how if how else ''}: {batch} clients, {adapters} adapters"
                found[name] = round(rate / base, 2)
    for row, other in itertools.product(rows, rows):
        if (row["part"], other["part"]) == ("prefill", "vllm prefill"):
            work = ("batch", "adapters", "prompt_tokens")
            if [row[name] for name in work] == [other[name] for name in work]:
                name = "first token, prefill / vllm: {batch} of {prompt_tokens} tokens, {adapters} adapters"
                found[name.format(**row)] = round(row["first_token_p99_ms"] / other["first_token_p99_ms"], 2)
    firsts = {row["system prompts"]: row["first_token_p50_ms"] for row in rows if "system prompts" in row}
    if len(firsts) == 2:
        found["first token, distinct / shared system prompts"] = round(
            firsts["distinct"] / firsts["shared"], 2
        )
    return found


_COMPARED = {
    *(("http", "in process"), ("http", "peft"), ("in process", "peft")),
    *(("in process", "vllm"), ("http", "vllm http")),
}


def _lines(batches: list[int], adapters: list[int]) -> list[tuple[int, int]]:
    """The (clients, adapters) lines of a table."""
    return [(batch, count) for count in adapters for batch in _at_least(batches, count)]


def _at_least(batches: list[int], adapters: int) -> list[int]:
    """The batches with at least one client per adapter."""
    return [batch for batch in batches if batch >= adapters]


def _in_a_process(part: str, measure: Callable[[Options], Iterator[Row]], options: Options) -> Iterator[Row]:
    """The rows of a part as they come. Exits where the part fails."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(measure, options, theirs))
    process.start()
    theirs.close()
    try:
        while True:
            yield ours.recv()
    except EOFError:
        process.join()
    if process.exitcode:
        sys.exit(f"{part} failed")


def _run(measure: Callable[[Options], Iterator[Row]], options: Options, rows: Connection) -> None:
    for row in measure(options):
        rows.send(row)


def _line(row: Row) -> str:
    return "  ".join(str(value) if name == "part" else f"{name} {value}" for name, value in row.items())


if __name__ == "__main__":
    main()
