"""How long the rows of a large dataset take to become tokens, in one process and in several.

    python -m benchmarks.row_encoding --model data/models/SmolLM2-135M-Instruct --machine cpu-2-cores

Conversations of about 200 tokens, with and without a mask of the assistant's turns. Starting the processes is
part of the time. Writes `benchmarks/results/row-encoding-<machine>.json`.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from app.core.datasets.rows import Conversation, Message, Row
from benchmarks.datasets import make_conversations
from benchmarks.estimate_settings import describe_machine
from worker.processes.parallel_map import Work
from worker.templates.token_rows import format_rows

_RESULTS = Path(__file__).parent / "results"
_MAX_LENGTH = 2048


def measure(tokenizer: PreTrainedTokenizerBase, rows: int, *, assistant_only: bool) -> dict[str, Any]:
    """Encode the rows in one process, then in several, and check that the tokens are the same."""
    numbered: list[tuple[int, Row]] = [
        (line, Conversation(tuple(Message(one["role"], one["content"]) for one in messages)))
        for line, messages in enumerate(make_conversations(rows), start=1)
    ]
    seconds, formatted = [], []
    for work in (None, Work(rows, processors=os.cpu_count() or 1)):
        began = time.perf_counter()
        found = format_rows(
            numbered, tokenizer, assistant_only=assistant_only, max_length=_MAX_LENGTH, work=work
        )
        seconds.append(time.perf_counter() - began)
        formatted.append(found)
    assert formatted[0] == formatted[1]
    alone, several = seconds
    return {
        "rows": rows,
        "assistant_only": assistant_only,
        "tokens_per_row": round(formatted[0].tokens / rows),
        "seconds_in_one_process": round(alone, 1),
        "seconds_in_several": round(several, 1),
        "ratio": round(alone / several, 2),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--rows", type=int, default=20_000)
    options = parser.parse_args()
    loaded = AutoTokenizer.from_pretrained(options.model)
    result = {
        **describe_machine("benchmarks.row_encoding"),
        "processors": os.cpu_count(),
        "rows": [measure(loaded, options.rows, assistant_only=only) for only in (False, True)],
    }
    print(json.dumps(result, indent=1))
    path = _RESULTS / f"row-encoding-{options.machine}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
