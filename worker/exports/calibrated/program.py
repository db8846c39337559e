"""A program that rounds a model's linear layers to 4 bits: `python -I program.py REQUEST`.

It is run by the interpreter of the environment that has llm-compressor, whose release of transformers need
not be the worker's: it imports nothing of this project. REQUEST is a JSON file of the form `Request`. Its
reports are lines of JSON on standard output: `{"progress": 0.5}`, and last `{"done": true}` or
`{"error": "…", "is_out_of_memory": false}`. It ends at once when its standard input is closed.
`--check` prints the release of llm-compressor as JSON, null where there is none.
"""

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypedDict

_MAX_MESSAGE = 2000

Report = Callable[..., None]


class Request(TypedDict):
    """What to round, and how. `rows` is a file with the token ids of a row on each line, as JSON."""

    method: str  # awq or gptq
    model: str
    output: str
    rows: str
    group_size: int
    ignore: list[str]
    max_shard_bytes: int


def main() -> None:
    """Run the request that the command line names, or print the installed release."""
    if sys.argv[1] == "--check":
        print(json.dumps(_find_release()))
        return
    with open(sys.argv[1], encoding="utf-8") as file:
        request: Request = json.load(file)
    # The libraries print, too: all that they print goes to standard error.
    reports = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def report(**found: object) -> None:
        reports.write(json.dumps(found) + "\n")

    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _compress(request, report)
    except Exception as error:  # the boundary of the program: any error becomes its report
        traceback.print_exc()
        report(
            error=f"{type(error).__name__}: {error}"[:_MAX_MESSAGE],
            is_out_of_memory=isinstance(error, MemoryError) or "out of memory" in str(error).lower(),
        )
    else:
        report(done=True)
    os._exit(0)


def _find_release() -> str | None:
    try:
        return version("llmcompressor")
    except PackageNotFoundError:
        return None


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def _compress(request: Request, report: Report) -> None:
    # Imported here: `--check` is to be quick, and to work where they are missing.
    import torch
    from llmcompressor import oneshot
    from loguru import logger
    from transformers import AutoModelForCausalLM

    logger.remove()
    logger.add(sys.stderr, level="ERROR")
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype="auto", local_files_only=True)
    with open(request["rows"], encoding="utf-8") as lines:
        rows = [torch.tensor([json.loads(line)]) for line in lines]
    examples: Any = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]
    with _without_pinned_memory():
        oneshot(
            model=model,
            recipe=[*_make_recipe(request), _make_progress(model, report)],
            dataset=torch.utils.data.DataLoader(examples, batch_size=None),
            # Layer after layer: only one at a time is on the GPU.
            pipeline="sequential",
        )
    model.save_pretrained(request["output"], max_shard_size=request["max_shard_bytes"])


def _make_recipe(request: Request) -> list[Any]:
    """The modifiers of llm-compressor: symmetric integers of 4 bits, a scale for each group of inputs.

    Symmetric, since SGLang reads no zero points in this format.
    """
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": request["group_size"],
    }
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    if request["method"] == "gptq":
        return [GPTQModifier(config_groups=groups, ignore=request["ignore"])]
    return [AWQModifier(), QuantizationModifier(config_groups=groups, ignore=request["ignore"])]


def _make_progress(model: Any, report: Report) -> Any:
    """A modifier that changes nothing and reports after each layer."""
    from llmcompressor.modifiers import Modifier

    # What is before the first layer belongs to it; what is after the last one is a part of its own.
    parts = model.config.get_text_config().num_hidden_layers + 1
    done = 0

    class LayerCount(Modifier):
        def on_initialize(self, state: Any, **options: Any) -> bool:
            return True

        def on_sequential_epoch_end(self, state: Any, event: Any, **options: Any) -> None:
            nonlocal done
            done += 1
            report(progress=min(1.0, done / parts))

    return LayerCount()


@contextmanager
def _without_pinned_memory() -> Iterator[None]:
    """Have AWQ leave memory unpinned where there is no GPU.

    llm-compressor 0.14.0.1 pins what it has cached for each layer, which torch refuses on a machine without
    an accelerator.
    """
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    original = IntermediatesCache.pin_memory
    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda *_arguments, **_options: None
    try:
        yield
    finally:
        IntermediatesCache.pin_memory = original


if __name__ == "__main__":
    main()
