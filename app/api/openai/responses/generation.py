"""Generates a whole response, and says why one failed."""

from collections import deque
from typing import Literal

from app.api.generate.answers import Answers
from app.api.http.errors import EngineRefusal, error_content, refusal_content
from app.api.openai.errors import openai_error
from app.api.openai.responses.output import ResponseOutput, end_status
from app.api.openai.responses.plan import ResponsePlan
from app.api.openai.responses.response import ResponseError, ResponseObject
from app.core.engine.messages import Finished
from app.core.errors import TunesmithError

_ERROR_CODES: dict[str, Literal["rate_limit_exceeded", "invalid_prompt"]] = {
    "rate_limit_error": "rate_limit_exceeded",
    "invalid_request_error": "invalid_prompt",
}


async def generate(
    plan: ResponsePlan, answers: Answers, output: ResponseOutput | None = None
) -> ResponseObject:
    """The whole response. Raises as Answers does; `output` has the items that were made until then."""
    output = output or ResponseOutput(plan.new_item_id)
    finished: Finished | None = None
    async for _, reply in answers:
        if isinstance(reply, Finished):
            finished = reply
            deque(output.end(end_status(reply)), maxlen=0)  # its events are not sent
        else:
            deque(output.add(reply), maxlen=0)
    assert finished is not None, "Answers ends with Finished, or raises."
    return plan.finished(output.items, finished)


def error_of(error: EngineRefusal | TunesmithError) -> ResponseError:
    """Why a response failed, with the word that OpenAI has for the kind of error."""
    native = refusal_content(error.failed) if isinstance(error, EngineRefusal) else error_content(error)
    found = openai_error(native)["error"]
    code = _ERROR_CODES.get(found["type"], "server_error")
    return ResponseError(code=code, message=found["message"], param=found["param"])
