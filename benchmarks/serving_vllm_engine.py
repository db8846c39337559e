"""vLLM in process: `python -m benchmarks.serving_vllm_engine`, run by the Python that vLLM is installed in.

Reads a VllmWork as JSON from its input and writes a row as JSON for each line of the table. Imports nothing
of Tunesmith but prompts and percentiles: vLLM pins other versions of the same libraries. Uses `EngineArgs`,
`LLMEngine` and `LoRARequest` as vLLM's example `multilora_inference.py` does.
"""

import dataclasses
import json
import os
import sys
import time
from functools import partial
from itertools import pairwise
from typing import Any

from benchmarks.random_prompts import prompts
from benchmarks.timings import measure_prefill, summarize


@dataclasses.dataclass
class VllmWork:
    """The lines to measure: (clients, adapters) pairs, all with or all without adapters.

    `arguments` are vLLM's `EngineArgs`; `adapters` maps names to folders. `prefills`: (prompts at once, their
    tokens) pairs, for which only the time to the first token is measured.
    """

    arguments: dict[str, Any]
    adapters: dict[str, str]
    lines: list[tuple[int, int]]
    vocabulary_size: int
    prompt_tokens: int
    new_tokens: int
    prefills: list[tuple[int, int]]


def main() -> None:
    """Measure all lines."""
    work = VllmWork(**json.load(sys.stdin))
    # Rows alone are read from the output: what vLLM and its processes print goes to the error output.
    rows = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    began = time.perf_counter()
    bench = _Bench(work)
    ready_seconds = time.perf_counter() - began
    bench.measure(1, min(1, len(work.adapters)), prompt_tokens=8, new_tokens=4)
    print(json.dumps({"seconds_to_ready": round(ready_seconds, 1)}), file=rows, flush=True)
    for batch, adapters in work.lines:
        bench.measure(max(1, adapters), adapters, prompt_tokens=2, new_tokens=2)  # adapters to the device
        found = bench.measure(batch, adapters, prompt_tokens=work.prompt_tokens, new_tokens=work.new_tokens)
        print(json.dumps({"batch": batch, "adapters": adapters, **found}), file=rows, flush=True)
    adapters = min(1, len(work.adapters))
    for batch, prompt_tokens in work.prefills:
        answer = partial(bench.measure, batch, adapters, prompt_tokens=prompt_tokens, new_tokens=2)
        row = {"batch": batch, "adapters": adapters, "prompt_tokens": prompt_tokens}
        print(json.dumps(row | measure_prefill(answer)), file=rows, flush=True)


class _Bench:
    def __init__(self, work: VllmWork) -> None:
        from vllm import EngineArgs, LLMEngine
        from vllm.lora.request import LoRARequest
        from vllm.usage.usage_lib import UsageContext

        # The context says how many tokens and sequences a step has at most: as vLLM's own `LLM`.
        arguments = EngineArgs(**work.arguments)
        self._engine = LLMEngine.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)
        self._adapters = [
            LoRARequest(name, number, folder)
            for number, (name, folder) in enumerate(work.adapters.items(), start=1)
        ]
        self._vocabulary_size = work.vocabulary_size
        self._count = 0
        self._runs = 0

    def measure(self, batch: int, adapters: int, *, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
        """Generate for so many clients at once: greedy, distinct prompts, adapters in turn."""
        from vllm import SamplingParams

        self._runs += 1
        texts = prompts(batch, prompt_tokens, self._vocabulary_size, seed=self._runs)
        sampling = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
        began = time.perf_counter()
        ids = []
        for index, text in enumerate(texts):
            self._count += 1
            ids.append(str(self._count))
            adapter = self._adapters[index % adapters] if adapters else None
            self._engine.add_request(ids[-1], {"prompt_token_ids": text}, sampling, lora_request=adapter)
        times: dict[str, list[float]] = {one: [] for one in ids}
        made: dict[str, int] = dict.fromkeys(ids, 0)
        while self._engine.has_unfinished_requests():
            outputs = self._engine.step()
            now = time.perf_counter()
            for output in outputs:
                times[output.request_id].append(now)
                made[output.request_id] = len(output.outputs[0].token_ids)
        seconds = time.perf_counter() - began
        assert set(made.values()) == {new_tokens}, made
        firsts = [one[0] - began for one in times.values()]
        gaps = [after - before for one in times.values() for before, after in pairwise(one)]
        return {"tokens_per_second": round(batch * new_tokens / seconds, 1), **summarize(firsts, gaps)}


if __name__ == "__main__":
    main()
