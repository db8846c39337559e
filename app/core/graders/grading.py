"""Runs a grader on an item and a sample. Models are reached through callables that are passed in."""

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from anyio import to_thread

from app.core.engine.messages import Likelihood
from app.core.graders import formula
from app.core.graders.grades import Grade, GradeErrorKind, GradingFailed, JudgeUsage
from app.core.graders.judges import AskJudge, question, read_verdict
from app.core.graders.samples import GradedSample
from app.core.graders.shapes import (
    AnyGrader,
    JsonSchemaGrader,
    LabelModelGrader,
    MultiGrader,
    PerplexityGrader,
    PythonGrader,
    ScoreModelGrader,
    StringCheckGrader,
    TextSimilarityGrader,
    ToolCallGrader,
)
from app.core.graders.similarity import similarity
from app.core.graders.structure import explain_misfit, read_calls, share_of_matches
from app.core.graders.templates import Namespaces, VariableMissing, render, resolve

Item = Mapping[str, Any]

_DEFAULT_THRESHOLD = 0.5
_UNAVAILABLE = "{} is not available here."


# Each raises GradingFailed.
FindLikelihood = Callable[[str], Awaitable[Likelihood]]
RunPython = Callable[[str, Mapping[str, Any], Item], Awaitable[float]]


@dataclass(frozen=True)
class GradingServices:
    """What graders use besides the item and the sample; a grader that needs what is None fails.

    `ask_judge`: asks a model that grades. `find_likelihood`: the likelihood of a text as the answer to this
    very item under the model that is evaluated. `run_python`: runs the source of a Python grader on the
    variables of a sample and on an item.
    """

    ask_judge: AskJudge | None = None
    find_likelihood: FindLikelihood | None = None
    run_python: RunPython | None = None


async def grade(grader: AnyGrader, item: Item, sample: GradedSample, services: GradingServices) -> Grade:
    """Returns the grade of one answer; where there is no score, a grade with the error.

    Scores are from 0 to 1, but those of `score_model`, `python` and `multi`, which have their own range, and
    of `perplexity`, which is at least 1.
    """
    return await _grade(grader, {"item": dict(item), "sample": sample.as_namespace()}, services)


async def _grade(grader: AnyGrader, namespaces: Namespaces, services: GradingServices) -> Grade:
    try:
        return await _score(grader, namespaces, services)
    except GradingFailed as error:
        failed = error
    except VariableMissing as error:
        kind = GradeErrorKind.SAMPLE if error.namespace == "sample" else GradeErrorKind.INVALID_VARIABLE
        failed = GradingFailed(kind, str(error))
    except ValueError as error:
        failed = GradingFailed(GradeErrorKind.OTHER, str(error))
    return Grade(0.0, False, error=failed)


async def _score(grader: AnyGrader, namespaces: Namespaces, services: GradingServices) -> Grade:
    match grader:
        case StringCheckGrader():
            return _passing(float(_check_string(grader, namespaces)), 1)
        case TextSimilarityGrader():
            # The longest texts take seconds.
            score = await to_thread.run_sync(_measure_similarity, grader, namespaces)
            return _passing(score, grader.pass_threshold)
        case JsonSchemaGrader():
            text = render(grader.input, namespaces)
            misfit = await to_thread.run_sync(explain_misfit, text, grader.json_schema)
            return Grade(float(misfit is None), misfit is None, reason=misfit)
        case ToolCallGrader():
            return _passing(_compare_calls(grader, namespaces), grader.pass_threshold, default=1)
        case PerplexityGrader():
            return await _measure_perplexity(grader, namespaces, services)
        case ScoreModelGrader() | LabelModelGrader():
            return await _ask_judge(grader, namespaces, services)
        case PythonGrader():
            if services.run_python is None:
                raise GradingFailed(GradeErrorKind.PYTHON_SERVER, _UNAVAILABLE.format("A process for Python"))
            score = await services.run_python(grader.source, namespaces["sample"], namespaces["item"])
            return _passing(score, grader.pass_threshold)
        case MultiGrader():
            return await _combine(grader, namespaces, services)


def _passing(score: float, threshold: float | None, *, default: float = _DEFAULT_THRESHOLD) -> Grade:
    return Grade(score, score >= (default if threshold is None else threshold))


def _check_string(grader: StringCheckGrader, namespaces: Namespaces) -> bool:
    text, reference = render(grader.input, namespaces), render(grader.reference, namespaces)
    match grader.operation:
        case "eq":
            return text == reference
        case "ne":
            return text != reference
        case "like":
            return reference in text
        case "ilike":
            return reference.casefold() in text.casefold()


def _measure_similarity(grader: TextSimilarityGrader, namespaces: Namespaces) -> float:
    text, reference = render(grader.input, namespaces), render(grader.reference, namespaces)
    return similarity(grader.evaluation_metric, text, reference)


def _compare_calls(grader: ToolCallGrader, namespaces: Namespaces) -> float:
    reference = grader.reference
    expected = read_calls(resolve(reference, namespaces) if isinstance(reference, str) else reference)
    made = read_calls(namespaces["sample"]["output_tools"])
    return share_of_matches(expected, made, names_only=grader.compare == "names")


async def _measure_perplexity(
    grader: PerplexityGrader, namespaces: Namespaces, services: GradingServices
) -> Grade:
    if services.find_likelihood is None:
        raise GradingFailed(GradeErrorKind.OTHER, _UNAVAILABLE.format("The likelihood of a reference answer"))
    found = await services.find_likelihood(render(grader.reference, namespaces))
    if not found.tokens:
        raise GradingFailed(GradeErrorKind.OTHER, "The reference answer has no tokens.")
    try:
        perplexity = math.exp(-found.logprob / found.tokens)
    except OverflowError:
        raise GradingFailed(GradeErrorKind.OTHER, "The perplexity is too large for a number.") from None
    threshold = grader.pass_threshold
    return Grade(perplexity, None if threshold is None else perplexity <= threshold)


async def _ask_judge(
    grader: ScoreModelGrader | LabelModelGrader, namespaces: Namespaces, services: GradingServices
) -> Grade:
    if services.ask_judge is None:
        raise GradingFailed(GradeErrorKind.JUDGE_SERVER, _UNAVAILABLE.format("A model that grades"))
    answer = await services.ask_judge(question(grader, namespaces))
    usage = {grader.model: answer.usage}
    try:
        verdict = read_verdict(grader, answer.text)
    except GradingFailed as error:
        return Grade(0.0, False, error=error, usage=usage)
    threshold = 1.0
    if isinstance(grader, ScoreModelGrader):
        threshold = sum(grader.bounds) / 2 if grader.pass_threshold is None else grader.pass_threshold
    return replace(_passing(verdict.score, threshold), reason=verdict.reason, usage=usage)


async def _combine(grader: MultiGrader, namespaces: Namespaces, services: GradingServices) -> Grade:
    grades = {name: await _grade(one, namespaces, services) for name, one in grader.graders.items()}
    scores = {name: one.score for name, one in grades.items()}
    usage: dict[str, JudgeUsage] = {}
    for one in grades.values():
        for model, used in one.usage.items():
            usage[model] = usage.get(model, JudgeUsage()) + used
    errors = [one.error for one in grades.values() if one.error]
    errors.sort(key=lambda error: error.kind.is_of_sample)
    failed = Grade(0.0, False, error=errors[0] if errors else None, scores=scores, usage=usage)
    if failed.error is not None and not failed.error.kind.is_of_sample:
        return failed
    try:
        score = formula.evaluate(grader.calculate_output, scores)
    except ValueError as error:
        return replace(failed, error=GradingFailed(GradeErrorKind.FORMULA, str(error)))
    return replace(_passing(score, grader.pass_threshold), error=failed.error, scores=scores, usage=usage)
