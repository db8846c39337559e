"""Grades answers: what graders need of engines, endpoints and processes, and grades as they are stored."""

from functools import partial

from app.core.engine.messages import GenerateRequest, Likelihood, Tools
from app.core.engine.sampling import Sampling
from app.core.evaluations.answers import Answer, AnswerError, StoredGrade
from app.core.evaluations.engine_requests import EngineRequests, RequestRefused
from app.core.evaluations.items import EvaluationItem
from app.core.evaluations.local_judge import LocalJudge, ServedModel
from app.core.evaluations.spec import EvaluationSpec
from app.core.graders.endpoint import JudgeEndpoint
from app.core.graders.grades import GradeErrorKind, GradingFailed
from app.core.graders.grading import GradingServices, grade
from app.core.graders.judges import JudgeAnswer, JudgeQuestion
from app.core.graders.python_process import PythonProcesses
from app.core.settings import Settings
from app.core.storage.database import Database
from worker.evaluations.use import UnreportedUse


class Grading:
    """Grades the answers of one evaluation. Must be closed."""

    def __init__(
        self,
        spec: EvaluationSpec,
        settings: Settings,
        database: Database,
        requests: EngineRequests,
        use: UnreportedUse,
    ) -> None:
        self._spec = spec
        self._requests = requests
        self._use = use
        self._judge = LocalJudge(settings, database, requests)
        self._endpoint = JudgeEndpoint(settings) if settings.judge_url else None
        self._python = PythonProcesses(settings)

    async def grade_all(self, item: EvaluationItem, answer: Answer, model: ServedModel) -> list[StoredGrade]:
        """Returns the grades of one answer, one a grader; where there is no answer, none has a score."""
        if answer.error is not None:
            missing = AnswerError(code="no_answer", message="There is no answer to grade.")
            return [StoredGrade(score=None, error=missing) for _ in self._spec.graders]
        services = GradingServices(
            ask_judge=self._ask_judge,
            find_likelihood=partial(self._find_likelihood, item, model),
            run_python=self._python.run,
        )
        sample = answer.as_sample()
        return [
            StoredGrade.of(await grade(grader, item.item, sample, services)) for grader in self._spec.graders
        ]

    async def _find_likelihood(self, item: EvaluationItem, model: ServedModel, reference: str) -> Likelihood:
        """The likelihood of a text as the answer to a row, under a model. Raises GradingFailed."""
        request = make_request(item, model, Sampling())
        wanted = {"reference": reference, "reads_only": True}
        try:
            answer = await self._requests.generate(request.model_copy(update=wanted))
        except RequestRefused as error:
            raise GradingFailed(GradeErrorKind.OTHER, error.message) from error
        assert answer.finished.likelihood is not None
        self._use.add(model.name, answer.finished.usage.prompt_tokens, 0)
        return answer.finished.likelihood

    async def close(self) -> None:
        """Close every connection."""
        if self._endpoint is not None:
            await self._endpoint.close()

    async def _ask_judge(self, question: JudgeQuestion) -> JudgeAnswer:
        """Ask a model of this server, where one has the name, else the endpoint. Raises GradingFailed."""
        if self._endpoint is None or await self._judge.find(question.model):
            answer = await self._judge.ask(question)
        else:
            answer = await self._endpoint.ask(question)
        self._use.add(answer.model, answer.usage.prompt_tokens, answer.usage.completion_tokens)
        return answer


def make_request(item: EvaluationItem, model: ServedModel, sampling: Sampling) -> GenerateRequest:
    """Returns the request for a model's answer to a row."""
    prompt = item.prompt
    return GenerateRequest(
        base_model=model.base_model,
        adapter=model.adapter,
        prompt=prompt.text,
        messages=prompt.messages,
        sampling=sampling,
        tools=Tools(functions=prompt.tools) if prompt.tools and prompt.messages else None,
    )
