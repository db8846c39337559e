"""What graders use while a request waits: engines, the endpoint of grading models, processes for Python."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread

from app.api.deps import Services
from app.api.generate.answers import Answers, collect
from app.api.http.errors import EngineRefusal
from app.core.engine.answers import GeneratedAnswer
from app.core.engine.endpoints import EngineEndpoint, find_engine
from app.core.engine.messages import GenerateRequest
from app.core.evaluations.engine_requests import RequestRefused
from app.core.evaluations.local_judge import LocalJudge
from app.core.graders.endpoint import JudgeEndpoint
from app.core.graders.grading import GradingServices
from app.core.graders.judges import JudgeAnswer, JudgeQuestion
from app.core.keys.records import Caller
from app.core.keys.usage import Amounts


class _Requests:
    """Sends each request to an engine once: somebody waits for the answer."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def generate(self, request: GenerateRequest) -> GeneratedAnswer:
        """Returns the whole answer. Raises RequestRefused, NoEngine and EngineFailed."""
        engine = await to_thread.run_sync(self._find, request)
        answers = Answers(self._services.engines, engine, [request])
        try:
            (answer,) = await collect(answers)
        except EngineRefusal as refusal:
            raise RequestRefused(refusal.failed.code, refusal.failed.message) from refusal
        finally:
            await answers.close()
        return answer

    def _find(self, request: GenerateRequest) -> EngineEndpoint:
        base_model = request.base_model
        with self._services.database.snapshot() as session:
            return find_engine(
                session,
                self._services.settings,
                base_model=base_model.name,
                quantization=base_model.quantization,
            )


@asynccontextmanager
async def grading_services(services: Services, caller: Caller) -> AsyncIterator[GradingServices]:
    """What graders use; closed at the end. What models read and make counts for the caller's key."""
    judge = LocalJudge(services.settings, services.database, _Requests(services))
    endpoint = JudgeEndpoint(services.settings) if services.settings.judge_url else None

    async def ask(question: JudgeQuestion) -> JudgeAnswer:
        if endpoint is None or await judge.find(question.model):
            answer = await judge.ask(question)
        else:
            answer = await endpoint.ask(question)
        amounts = Amounts(1, answer.usage.prompt_tokens, answer.usage.completion_tokens)
        services.usage_meter.add(caller.key_id, answer.model, amounts)
        return answer

    try:
        yield GradingServices(ask_judge=ask, run_python=services.python_graders.run)
    finally:
        if endpoint is not None:
            await endpoint.close()
