"""Specs and evaluations for tests."""

from typing import Any

from sqlalchemy.orm import Session

from app.core.evaluations import records
from app.core.evaluations.items import read_inline
from app.core.evaluations.spec import EvaluationSpec
from app.core.storage import tables

QUANTIZATION: dict[str, Any] = {}
MODELS: list[dict[str, Any]] = [
    {"label": "base", "base_model": "owner/model", "quantization": QUANTIZATION},
    {"label": "tuned", "base_model": "owner/model", "quantization": QUANTIZATION, "adapter": "ad_1"},
]
GRADER: dict[str, Any] = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_text}}",
    "reference": "{{item.reference}}",
    "operation": "eq",
}
ROWS: list[dict[str, Any]] = [
    {"prompt": "What is 1 + 1?", "reference": "2"},
    {"prompt": "What is 2 + 2?", "reference": "4"},
]


def make_evaluation_spec(**fields: Any) -> EvaluationSpec:
    return EvaluationSpec.model_validate({"models": MODELS, "graders": [GRADER], **fields})


def make_evaluation(
    session: Session, *, rows: list[dict[str, Any]] | None = ROWS, max_waiting: int = 100, **fields: Any
) -> tables.EvaluationRow:
    spec = make_evaluation_spec(**fields)
    inline = None if rows is None else [read_inline(row, spec) for row in rows]
    return records.submit(session, spec, inline=inline, max_waiting=max_waiting)
