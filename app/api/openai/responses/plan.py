"""One response to make: the engine's request, and what the response says of the request."""

import time
from dataclasses import dataclass, field
from typing import Any

from app.api.generate.served import answered_model
from app.api.openai.responses.body import ReasoningConfig, ResponseBody
from app.api.openai.responses.items import Item
from app.api.openai.responses.response import (
    IncompleteDetails,
    OutputTokensDetails,
    ResponseObject,
    ResponseUsage,
)
from app.core.adapters.targets import Target
from app.core.chat import responses as stored_responses
from app.core.engine.messages import Finished, GenerateRequest
from app.core.specs.states import ResponseStatus


@dataclass(frozen=True)
class ResponsePlan:
    """One response to make. `earlier_bytes`: the size of the items of the conversation that it continues."""

    body: ResponseBody
    target: Target
    request: GenerateRequest
    input_items: list[Item]
    earlier_bytes: int
    is_stored: bool
    id: str
    created_at: int = field(default_factory=lambda: int(time.time()))

    def new_item_id(self, prefix: str, number: int) -> str:
        """The id of an item of the output, by its number there."""
        return stored_responses.item_id(prefix, self.id, len(self.input_items) + number)

    def response(self, status: ResponseStatus, output: list[Item], **fields: Any) -> ResponseObject:
        """The response in this state, with these items."""
        body = self.body
        return ResponseObject(
            id=self.id,
            created_at=self.created_at,
            status=status,
            model=answered_model(self.target, body.model),
            output=output,
            system_fingerprint=self.target.base_model.quantization.label,
            background=bool(body.background),
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            max_tool_calls=body.max_tool_calls,
            metadata=body.metadata or {},
            parallel_tool_calls=body.parallel_tool_calls is not False,
            previous_response_id=body.previous_response_id,
            prompt_cache_key=body.prompt_cache_key,
            reasoning=body.reasoning or ReasoningConfig(),
            safety_identifier=body.safety_identifier,
            store=self.is_stored,
            temperature=1.0 if body.temperature is None else body.temperature,
            text=body.text_config,
            tool_choice=body.tool_choice or "auto",
            tools=body.tools or [],
            top_logprobs=body.top_logprobs or 0,
            top_p=1.0 if body.top_p is None else body.top_p,
            user=body.user,
            **fields,
        )

    def finished(self, output: list[Item], finished: Finished) -> ResponseObject:
        """The whole response."""
        is_cut = finished.finish_reason == "length"
        usage = finished.usage
        return self.response(
            ResponseStatus.INCOMPLETE if is_cut else ResponseStatus.COMPLETED,
            output,
            completed_at=None if is_cut else int(time.time()),
            incomplete_details=IncompleteDetails(reason="max_output_tokens") if is_cut else None,
            usage=ResponseUsage(
                input_tokens=usage.prompt_tokens,
                output_tokens=usage.completion_tokens,
                output_tokens_details=OutputTokensDetails(reasoning_tokens=usage.reasoning_tokens),
                total_tokens=usage.prompt_tokens + usage.completion_tokens,
            ),
        )
