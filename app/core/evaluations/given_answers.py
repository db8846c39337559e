"""Evaluations of answers that are there already: no model is asked, and graders grade what is given."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from app.core.errors import InvalidRequest
from app.core.evaluations import records
from app.core.evaluations.answers import Answer, AnswerCall
from app.core.evaluations.items import EvaluationItem, EvaluationPrompt
from app.core.evaluations.spec import EvaluatedModel, EvaluationSpec
from app.core.evaluations.submission import check_graders
from app.core.graders.shapes import AnyGrader, PerplexityGrader
from app.core.keys.records import OWNER, Caller
from app.core.settings import Settings
from app.core.specs.job import QuantizationSpec
from app.core.storage import tables

# In the place of the model's label.
LABEL = "given answers"


def submit(
    session: Session,
    settings: Settings,
    rows: Sequence[tuple[dict[str, Any], Mapping[str, Any] | None]],
    graders: Sequence[AnyGrader],
    *,
    name: str | None,
    definition_id: str | None = None,
    origin: dict[str, object] | None = None,
    caller: Caller = OWNER,
) -> tables.EvaluationRow:
    """Put the evaluation of rows and their answers in the queue, each a pair of item and sample.

    A sample has `output_text`, and `output_tools` in OpenAI's form. Raises InvalidRequest, QueueFull
    and KeyQueueFull.
    """
    check_graders(session, settings, graders)
    if any(isinstance(grader, PerplexityGrader) for grader in graders):
        raise InvalidRequest(
            "`perplexity` is measured of a model, and these rows name none.", hint="Leave the grader out."
        )
    model = EvaluatedModel(label=LABEL, base_model="", quantization=QuantizationSpec())
    evaluation = records.submit(
        session,
        EvaluationSpec(models=[model], graders=list(graders)),
        name=name,
        inline=[EvaluationItem(item, EvaluationPrompt(text="")) for item, _ in rows],
        definition_id=definition_id,
        origin=origin,
        max_waiting=settings.max_queued_jobs,
        caller=caller,
    )
    session.add_all(
        tables.EvaluationAnswerRow(
            evaluation_id=evaluation.id,
            number=number,
            model=0,
            answer=_read_answer(number, sample or {}).model_dump(mode="json"),
            grades=None,
        )
        for number, (_, sample) in enumerate(rows)
    )
    session.flush()
    return evaluation


def _read_answer(number: int, sample: Mapping[str, Any]) -> Answer:
    text = sample.get("output_text") or ""
    try:
        if not isinstance(text, str):
            raise TypeError("output_text is no text")
        calls = [_read_call(call) for call in sample.get("output_tools") or []]
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidRequest(
            f"Row {number}: the sample can't be read: {error}.", param="data_source"
        ) from None
    return Answer(text=text, tool_calls=calls, finish_reason="tool_calls" if calls else "stop")


def _read_call(call: Mapping[str, Any]) -> AnswerCall:
    function = call["function"]
    return AnswerCall(id=call.get("id") or "", name=function["name"], arguments=function["arguments"])
