"""The baseline: PEFT's own `generate` on the same work, one adapter at a time."""

import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from app.core.engine.messages import BaseModelRef
from benchmarks.random_prompts import prompts
from worker.models import base_model
from worker.models.device import find_device


class PeftBench:
    """Measures PEFT with one base model and all adapters loaded."""

    def __init__(self, folder: Path, base: BaseModelRef, adapters: list[Path]) -> None:
        self._device = find_device()
        self._model: Any = base_model.load_model(folder, base.quantization, self._device)
        self._names = [one.name for one in adapters]
        for index, one in enumerate(adapters):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if index:
                    self._model.load_adapter(one, adapter_name=one.name)
                else:
                    self._model = PeftModel.from_pretrained(self._model, one, adapter_name=one.name)
        self._model.eval()

    def rows(
        self, batch: int, adapters: int, *, prompt_tokens: int, new_tokens: int, max_calls: int
    ) -> Iterator[dict[str, Any]]:
        """The work of `batch` clients: a call for each of them; then one for each adapter's clients together.

        At most `max_calls` calls are measured: the others are alike.
        """
        texts = prompts(batch, prompt_tokens, self._model.config.vocab_size)
        chosen = [index % adapters for index in range(batch)] if adapters else [None] * batch
        alone = [(adapter, [text]) for adapter, text in zip(chosen, texts, strict=True)]
        together = {
            adapter: [text for text, other in zip(texts, chosen, strict=True) if other == adapter]
            for adapter in chosen
        }
        # Warm up, so that the set-up of the first call is not measured.
        self._generate(chosen[0], texts[:1], 2)
        for how, calls in (("a call for each client", alone), ("a call for each adapter", together.items())):
            measured = list(calls)[:max_calls]
            began = time.perf_counter()
            for adapter, rows in measured:
                self._generate(adapter, rows, new_tokens)
            seconds = time.perf_counter() - began
            made = sum(len(rows) for _, rows in measured) * new_tokens
            yield {
                "batch": batch,
                "adapters": adapters,
                "how": how,
                "calls": len(measured),
                "new_tokens": new_tokens,
                "tokens_per_second": round(made / seconds, 1),
            }

    def _generate(self, adapter: int | None, rows: list[list[int]], new_tokens: int) -> None:
        ids = torch.tensor(rows, device=self._device.torch)
        options = {"do_sample": False, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        if adapter is None:
            with self._model.disable_adapter():
                self._call(ids, options)
        else:
            self._model.set_adapter(self._names[adapter])
            self._call(ids, options)

    def _call(self, ids: torch.Tensor, options: dict[str, Any]) -> None:
        made = self._model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options
        )
        assert made.shape[1] == ids.shape[1] + options["max_new_tokens"]
