"""Responses that are made in the background, as tasks of the API process.

Each has a lease of this process in the database: a process that is gone does not extend it, and any other one
fails the response. A response that was cancelled or deleted meanwhile has no lease to extend, and its task
ends.
"""

import asyncio
import logging
from datetime import datetime, timedelta

from anyio import to_thread
from sqlalchemy.orm import Session

from app.api.generate.answers import Answers
from app.api.generate.use import RequestUse
from app.api.http.errors import EngineRefusal
from app.api.openai.responses.generation import error_of, generate
from app.api.openai.responses.output import ResponseOutput
from app.api.openai.responses.plan import ResponsePlan
from app.api.openai.responses.response import ResponseError, ResponseObject
from app.api.openai.responses.storage import new_row, size_of, stored_content, stored_items
from app.core.chat import responses as stored_responses
from app.core.engine.client import EngineClient
from app.core.errors import TunesmithError
from app.core.settings import Settings
from app.core.specs.states import ResponseStatus
from app.core.storage import clock
from app.core.storage.database import Database
from app.core.storage.outages import log_unless_away

_INTERRUPTED = "The API process that made this response was stopped; send the request again."
_log = logging.getLogger(__name__)


class BackgroundResponses:
    """The responses that this process makes in the background."""

    def __init__(self, database: Database, settings: Settings, engines: EngineClient) -> None:
        self._database = database
        self._settings = settings
        self._engines = engines
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._is_closing = False

    async def start(self, plan: ResponsePlan, use: RequestUse) -> ResponseObject:
        """Store the response, and begin to make it."""
        queued = plan.response(ResponseStatus.QUEUED, [])
        await to_thread.run_sync(self._add, plan, queued)
        task = asyncio.create_task(self._run(plan, use))
        self._tasks[plan.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(plan.id, None))
        return queued

    async def cancel(self, response_id: str) -> None:
        """End a response, with what has been made of it where that is in this process."""
        task = self._tasks.get(response_id)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await to_thread.run_sync(self._cancel, response_id)

    async def close(self) -> None:
        """Fail the responses that are being made."""
        self._is_closing = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def fail_abandoned(self) -> None:
        """Fail the responses of processes that are gone."""
        with self._database.transaction() as session:
            error = ResponseError(code="server_error", message=_INTERRUPTED).model_dump()
            for response_id in stored_responses.fail_abandoned(session, error):
                _log.warning("The API process that made response %s is gone", response_id)

    async def _run(self, plan: ResponsePlan, use: RequestUse) -> None:
        output = ResponseOutput(plan.new_item_id)
        try:
            ended = await self._generate(plan, output, use)
        except asyncio.CancelledError:
            ended = self._stopped(plan, output)
        except (EngineRefusal, TunesmithError) as error:
            ended = plan.response(ResponseStatus.FAILED, output.cut(), error=error_of(error))
        except Exception:
            # The boundary of the task: the response must not stay in progress.
            _log.exception("Response %s failed", plan.id)
            unknown = ResponseError(code="server_error", message="Something went wrong on the server.")
            ended = plan.response(ResponseStatus.FAILED, output.cut(), error=unknown)
        if ended is not None:
            await to_thread.run_sync(self._end, plan, ended)

    async def _generate(
        self, plan: ResponsePlan, output: ResponseOutput, use: RequestUse
    ) -> ResponseObject | None:
        """The whole response; None where it was cancelled or deleted by another process."""
        answers = Answers(self._engines, plan.target.engine, [plan.request], use=use)
        working = asyncio.create_task(generate(plan, answers, output))
        leasing = asyncio.create_task(self._hold_lease(plan.id))
        try:
            await asyncio.wait({working, leasing}, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            for task in (working, leasing):
                task.cancel()
            await asyncio.gather(working, leasing, return_exceptions=True)
            await answers.close()

    async def _hold_lease(self, response_id: str) -> None:
        """Extend the lease until the response was cancelled or deleted."""
        while True:
            try:
                if not await to_thread.run_sync(self._renew, response_id):
                    return
            except Exception as error:
                # A database that does not respond now may do so before the lease has ended.
                log_unless_away(_log, f"The lease of response {response_id} can't be extended now", error)
            await asyncio.sleep(self._settings.lease_seconds / 3)

    def _stopped(self, plan: ResponsePlan, output: ResponseOutput) -> ResponseObject:
        if not self._is_closing:
            return plan.response(ResponseStatus.CANCELLED, output.cut())
        error = ResponseError(code="server_error", message=_INTERRUPTED)
        return plan.response(ResponseStatus.FAILED, output.cut(), error=error)

    def _lease_end(self, session: Session) -> datetime:
        return clock.now(session) + timedelta(seconds=self._settings.lease_seconds)

    def _add(self, plan: ResponsePlan, response: ResponseObject) -> None:
        hours = self._settings.response_hours
        with self._database.transaction() as session:
            session.add(new_row(plan, response, hours=hours, alive_until=self._lease_end(session)))

    def _renew(self, response_id: str) -> bool:
        with self._database.transaction() as session:
            return stored_responses.renew(session, response_id, alive_until=self._lease_end(session))

    def _end(self, plan: ResponsePlan, response: ResponseObject) -> None:
        items = stored_items(plan, response)
        with self._database.transaction() as session:
            stored_responses.end(
                session,
                plan.id,
                response.status,
                content=stored_content(response),
                items=items,
                size_bytes=size_of(plan, items),
            )

    def _cancel(self, response_id: str) -> None:
        with self._database.transaction() as session:
            stored_responses.cancel(session, response_id)
