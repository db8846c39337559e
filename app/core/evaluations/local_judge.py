"""Models of this server that grade: an adapter or a base model, asked through the engine."""

import json
from dataclasses import dataclass
from typing import Protocol

from anyio import to_thread
from sqlalchemy.orm import Session

from app.core.adapters import records as adapter_records
from app.core.aliases import records as alias_records
from app.core.aliases.shares import assign
from app.core.engine import workers
from app.core.engine.answers import GeneratedAnswer
from app.core.engine.messages import AdapterRef, BaseModelRef, ChatMessage, GenerateRequest, OutputSchema
from app.core.engine.sampling import Sampling
from app.core.errors import TunesmithError
from app.core.errors.adapters import AdapterNotFound
from app.core.evaluations.engine_requests import RequestRefused
from app.core.graders.grades import GradeErrorKind, GradingFailed, JudgeUsage
from app.core.graders.judges import JudgeAnswer, JudgeQuestion
from app.core.settings import Settings
from app.core.specs.job import QuantizationSpec
from app.core.storage.database import Database

_MAX_NEW_TOKENS = 1024


@dataclass(frozen=True)
class ServedModel:
    """A model of this server. `name` is that of the adapter, or of the base model alone."""

    name: str
    base_model: BaseModelRef
    adapter: AdapterRef | None = None


class Requests(Protocol):
    """Sends requests to engines."""

    async def generate(self, request: GenerateRequest) -> GeneratedAnswer:
        """Returns the whole answer. Raises RequestRefused and TunesmithError."""


class LocalJudge:
    """Asks models of this server."""

    def __init__(self, settings: Settings, database: Database, requests: Requests) -> None:
        self._settings = settings
        self._database = database
        self._requests = requests

    async def find(self, name: str) -> ServedModel | None:
        """Returns the model of this server that has the name, or None."""
        return await to_thread.run_sync(self._find, name)

    async def ask(self, question: JudgeQuestion) -> JudgeAnswer:
        """Returns the model's answer, JSON that fits the question's schema. Raises GradingFailed."""
        found = await self.find(question.model)
        if found is None:
            raise GradingFailed(
                GradeErrorKind.JUDGE_SERVER, f"There is no model {question.model!r} on this server."
            )
        sampling = question.sampling
        request = GenerateRequest(
            base_model=found.base_model,
            adapter=found.adapter,
            messages=[
                ChatMessage(role="system" if role == "developer" else role, content=content)
                for role, content in question.messages
            ],
            sampling=Sampling(
                max_new_tokens=sampling.max_completions_tokens or _MAX_NEW_TOKENS,
                temperature=sampling.temperature or 0.0,
                top_p=sampling.top_p or 1.0,
                seed=sampling.seed,
            ),
            output_schema=OutputSchema(source=json.dumps(question.schema), strict=False),
            template_variables={"reasoning_effort": sampling.reasoning_effort}
            if sampling.reasoning_effort
            else {},
        )
        try:
            answer = await self._requests.generate(request)
        except (RequestRefused, TunesmithError) as error:
            raise GradingFailed(GradeErrorKind.JUDGE_SERVER, error.message) from error
        usage = answer.finished.usage
        used = JudgeUsage(usage.prompt_tokens, usage.completion_tokens)
        return JudgeAnswer(answer.text, used, found.name)

    def _find(self, name: str) -> ServedModel | None:
        with self._database.snapshot() as session:
            return find_served(session, self._settings, name)


def find_served(session: Session, settings: Settings, name: str) -> ServedModel | None:
    """Returns what this server has under a name: a base model in the models folder, else an adapter.

    Of an alias it is what that points to, where one judge is enough: a grader that is run by itself.
    """
    alias = alias_records.find(session, name)
    if alias is not None:
        name = assign(name, alias_records.targets_of(alias), subject=None).key
    if name in workers.find_local_names(session, settings):
        return ServedModel(name, BaseModelRef(name=name, quantization=QuantizationSpec()))
    try:
        adapter = adapter_records.get(session, name)
    except AdapterNotFound:
        return None
    return ServedModel(adapter.name, *adapter_records.references(adapter))
