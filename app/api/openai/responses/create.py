"""Makes responses: whole, or as a stream of events.

A client that disconnects cancels the work. A stream has sent the response's id by then, so that the response
is stored, as cancelled; one that was to be sent whole is not.
"""

import logging
from collections.abc import AsyncGenerator
from typing import Any

from anyio import to_thread
from fastapi import Request, Response

from app.api.deps import Services
from app.api.generate.answer_events import EventStream
from app.api.generate.answers import CLIENT_CLOSED_REQUEST, Answers, unless_disconnected
from app.api.generate.served import served_headers
from app.api.generate.use import RequestUse
from app.api.http.errors import EngineRefusal, dumps
from app.api.http.server_sent_events import server_sent
from app.api.openai.responses.generation import error_of, generate
from app.api.openai.responses.output import ResponseOutput, end_status
from app.api.openai.responses.plan import ResponsePlan
from app.api.openai.responses.response import ResponseError, ResponseObject
from app.api.openai.responses.storage import new_row
from app.core.engine.messages import Finished
from app.core.errors import TunesmithError
from app.core.specs.states import ResponseStatus

_log = logging.getLogger(__name__)


async def respond(plan: ResponsePlan, use: RequestUse, *, request: Request, services: Services) -> object:
    """The stream, or the whole response."""
    answers = Answers(services.engines, plan.target.engine, [plan.request], use=use)
    is_stream = plan.body.stream
    try:
        if is_stream and await unless_disconnected(request, answers.begin()):
            events = _Stream(plan, answers, services).events()
            return EventStream(events, answers, headers=served_headers(plan.target))
        whole = None if is_stream else await unless_disconnected(request, generate(plan, answers))
    except BaseException:
        await answers.close()
        raise
    await answers.close()
    if whole is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    await _store(services, plan, whole)
    return whole


class _Stream:
    """The events of one streamed response, as they are sent."""

    def __init__(self, plan: ResponsePlan, answers: Answers, services: Services) -> None:
        self._plan = plan
        self._answers = answers
        self._services = services
        self._output = ResponseOutput(plan.new_item_id)
        self._sequence_number = 0
        self._has_ended = False

    async def events(self) -> AsyncGenerator[str, None]:
        """The events. Stores the response before the last one is sent."""
        try:
            async for event in self._generated():
                yield event
        # The status has been sent: an error can only be an event of the stream.
        except (EngineRefusal, TunesmithError) as error:
            for event in await self._failed(error_of(error)):
                yield event
        except Exception:
            _log.exception("Response %s failed", self._plan.id)
            message = "Something went wrong on the server; its log has the cause under the response's id."
            for event in await self._failed(ResponseError(code="server_error", message=message)):
                yield event
        finally:
            if not self._has_ended:  # the client has disconnected
                await self._end(self._plan.response(ResponseStatus.CANCELLED, self._output.cut()))

    async def _generated(self) -> AsyncGenerator[str, None]:
        begun = self._plan.response(ResponseStatus.IN_PROGRESS, [])
        yield self._response_event("created", begun)
        yield self._response_event("in_progress", begun)
        async for _, reply in self._answers:
            if not isinstance(reply, Finished):
                for event in self._output.add(reply):
                    yield self._event(event)
                continue
            for event in self._output.end(end_status(reply)):
                yield self._event(event)
            whole = self._plan.finished(self._output.items, reply)
            await self._end(whole)
            yield self._response_event(whole.status, whole)

    async def _failed(self, error: ResponseError) -> list[str]:
        """Store the response as failed. Returns the events of it."""
        failed = self._plan.response(ResponseStatus.FAILED, self._output.cut(), error=error)
        try:
            await self._end(failed)
        except Exception:
            # What failed may be the database itself.
            _log.exception("Response %s can't be stored", self._plan.id)
        content = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
        return [self._response_event("failed", failed), self._event(content)]

    async def _end(self, response: ResponseObject) -> None:
        # Set first: where the client disconnects while this is stored, it is not stored twice.
        self._has_ended = True
        await _store(self._services, self._plan, response)

    def _response_event(self, name: str, response: ResponseObject) -> str:
        return self._event({"type": f"response.{name}", "response": response.model_dump(mode="json")})

    def _event(self, content: dict[str, Any]) -> str:
        numbered = {**content, "sequence_number": self._sequence_number}
        self._sequence_number += 1
        return server_sent(dumps(numbered), event=content["type"])


async def _store(services: Services, plan: ResponsePlan, response: ResponseObject) -> None:
    if plan.is_stored:
        await to_thread.run_sync(_add_row, services, plan, response)


def _add_row(services: Services, plan: ResponsePlan, response: ResponseObject) -> None:
    row = new_row(plan, response, hours=services.settings.response_hours)
    services.commits.run(lambda session: session.add(row))
