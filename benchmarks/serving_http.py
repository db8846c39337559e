"""The same work through HTTP: a running API, a running engine, and streaming clients in a third process."""

import time
from typing import Any

from app.core.engine.messages import BaseModelRef
from benchmarks.random_prompts import prompts
from benchmarks.serving_box import ServingBox
from benchmarks.streaming_clients import Answer, Load, send
from benchmarks.timings import summarize

_COLD_ADAPTERS = 4


class HttpBench:
    """Measures a running ServingBox."""

    def __init__(
        self, box: ServingBox, base_model: BaseModelRef, adapters: list[str], token_count: int
    ) -> None:
        self._box = box
        self._base_model = base_model
        self._adapters = adapters
        self._token_count = token_count  # prompts are made of the ids below
        self._rows = 0

    def start(self) -> dict[str, Any]:
        """Seconds to the first answer, for which the base model is loaded and warmed up."""
        began = time.perf_counter()
        self._box.complete(self._body(self._adapters[-1], [5], 1))
        return {"first_answer_seconds": round(time.perf_counter() - began, 2)}

    def cold_adapters(self, prompt_tokens: int) -> dict[str, Any]:
        """Time to the first token of adapters that must be fetched, read and copied to the device first."""
        names = self._adapters[:-1][:_COLD_ADAPTERS]
        texts = prompts(len(names), prompt_tokens, self._token_count)
        bodies = [self._body(name, text, 2) for name, text in zip(names, texts, strict=True)]
        cold, warm = ([self._first_ms(body) for body in bodies] for _ in range(2))
        return {"cold_first_token_ms": cold, "warm_first_token_ms": warm}

    def row(self, batch: int, adapters: int, *, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
        """Measure all clients at once: greedy, distinct prompts, adapters in turn."""
        self._rows += 1
        texts = prompts(batch, prompt_tokens, self._token_count, seed=self._rows)
        names = self._adapters[:adapters] or [self._base_model.name]
        self._send([self._body(name, [7 + index], 2) for index, name in enumerate(names)])
        before = self._box.processor_seconds()
        answers = self._send(
            [self._body(names[i % len(names)], text, new_tokens) for i, text in enumerate(texts)]
        )
        after = self._box.processor_seconds()
        made = sum(answer.tokens for answer in answers)
        assert made == batch * new_tokens, made
        used = {
            f"{name}_cpu_ms_per_token": round((after[name] - before[name]) / made * 1e3, 3) for name in after
        }
        return {"batch": batch, "adapters": adapters, **summarize_answers(answers, made), **used}

    def _first_ms(self, body: dict[str, Any]) -> float:
        return round(self._send([body])[0].first_seconds * 1e3, 1)

    def _send(self, bodies: list[dict[str, Any]]) -> list[Answer]:
        return send(Load(self._box.port, bodies))

    def _body(self, model: str, prompt: list[int], new_tokens: int) -> dict[str, Any]:
        body = {"model": model, "prompt": prompt, "max_tokens": new_tokens, "temperature": 0}
        is_base = model == self._base_model.name
        return body | ({"quantization": self._base_model.quantization.model_dump()} if is_base else {})


def summarize_answers(answers: list[Answer], made: int) -> dict[str, Any]:
    """Tokens a second of all answers together, and the times to the first token and between tokens."""
    seconds = max(answer.times[-1] for answer in answers) - min(answer.sent_at for answer in answers)
    firsts = [answer.first_seconds for answer in answers]
    gaps = [gap for answer in answers for gap in answer.gaps]
    return {"tokens_per_second": round(made / seconds, 1), **summarize(firsts, gaps)}
