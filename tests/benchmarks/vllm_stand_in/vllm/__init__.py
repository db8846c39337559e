"""Stands in for the vLLM package: the names that the benchmark uses, and an engine that computes nothing.

Each step makes a token for every request. Prints, as vLLM and its processes do.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.usage.usage_lib import UsageContext

__version__ = "0.24.0+stand.in"


@dataclass
class EngineArgs:
    model: str
    dtype: str
    max_model_len: int
    gpu_memory_utilization: float
    quantization: str | None = None
    enable_lora: bool = False
    max_loras: int = 1
    max_lora_rank: int = 16


@dataclass
class SamplingParams:
    temperature: float
    max_tokens: int
    ignore_eos: bool


@dataclass
class CompletionOutput:
    token_ids: list[int] = field(default_factory=list)


@dataclass
class RequestOutput:
    request_id: str
    outputs: list[CompletionOutput]


class LLMEngine:
    def __init__(self, arguments: EngineArgs) -> None:
        assert Path(arguments.model, "config.json").is_file()
        self._arguments = arguments
        self._left: dict[str, int] = {}
        self._outputs: dict[str, RequestOutput] = {}
        print("INFO a line that is no row", flush=True)

    @classmethod
    def from_engine_args(cls, arguments: EngineArgs, usage_context: UsageContext) -> "LLMEngine":
        return cls(arguments)

    def add_request(
        self,
        request_id: str,
        prompt: dict[str, Any],
        params: SamplingParams,
        lora_request: LoRARequest | None = None,
    ) -> None:
        arguments = self._arguments
        assert len(prompt["prompt_token_ids"]) + params.max_tokens <= arguments.max_model_len
        if lora_request is not None:
            assert arguments.enable_lora
            assert lora_request.lora_int_id > 0
            assert Path(lora_request.lora_path, "adapter_config.json").is_file()
        self._left[request_id] = params.max_tokens
        self._outputs[request_id] = RequestOutput(request_id, [CompletionOutput()])

    def has_unfinished_requests(self) -> bool:
        return bool(self._left)

    def step(self) -> list[RequestOutput]:
        stepped = [self._outputs[one] for one in self._left]
        for output in stepped:
            output.outputs[0].token_ids.append(7)
            self._left[output.request_id] -= 1
        self._left = {one: left for one, left in self._left.items() if left}
        return stepped
