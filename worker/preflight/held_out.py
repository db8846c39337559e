"""Which rows of its dataset a job holds out for evaluation. Loads a tokenizer, never a model."""

from app.core.engine.preflight import HeldOut, PreflightRequest
from app.core.errors.jobs import NothingToLearn
from app.core.evaluations.items import split_lines
from worker.models.files import description
from worker.planning import automatic_settings
from worker.preflight.environment import PreflightEnvironment, load_tokenizer, open_rows
from worker.templates.preference_tokens import format_preferences
from worker.templates.token_rows import format_rows


def find_held_out(request: PreflightRequest, environment: PreflightEnvironment) -> HeldOut:
    """Returns the lines of the rows that the job's own split holds out.

    All rows are rendered: the job splits those from which it can learn something. Raises the errors that the
    job itself would fail with, and NothingToLearn where it holds out nothing.
    """
    spec = request.spec
    if not spec.training.validation_split:
        raise NothingToLearn(
            "The job holds no rows out: its training.validation_split is 0.", hint="Name a dataset instead."
        )
    folder, _ = environment.find_model(spec.base_model)
    tokenizer, _ = load_tokenizer(folder, spec.chat_template)
    max_length = automatic_settings.max_seq_length(spec.training, description.read_context_length(folder))
    rows, moment = open_rows(environment, request.dataset), request.submitted_at
    if spec.method == "sft":
        assistant_only = spec.training.assistant_only_loss
        formatted = format_rows(
            rows, tokenizer, assistant_only=assistant_only, max_length=max_length, moment=moment
        )
        lines = [row.line for row in formatted.rows]
    else:
        compared = format_preferences(rows, tokenizer, max_length=max_length, moment=moment)
        lines = [pair.line for pair in compared.rows]
    return HeldOut(lines=split_lines(lines, spec.training.validation_split, spec.training.seed))
