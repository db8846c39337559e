"""Errors of evaluations: states that do not allow a call, and the reasons why an evaluation failed."""

from app.core.errors import Conflict, NotFound, TunesmithError


class EvaluationNotFound(NotFound):
    """There is no such evaluation."""

    code = "evaluation_not_found"


class EvalNotFound(NotFound):
    """There is no such eval or run."""

    code = "eval_not_found"


class EvaluationAlreadyEnded(Conflict):
    """The evaluation has ended."""

    code = "evaluation_already_ended"


class EvaluationNotRetryable(Conflict):
    """Only an evaluation that has ended, and lacks something, can be retried."""

    code = "evaluation_not_retryable"


class EvaluationNotEnded(Conflict):
    """The evaluation has not ended."""

    code = "evaluation_not_ended"


class EvaluationFailure(TunesmithError):
    """The evaluation failed."""

    type = "evaluation_error"
    code = "evaluation_failed"


class EvaluationDiskFull(EvaluationFailure):
    """The disk has no space for the evaluation."""

    code = "disk_full"


class EvaluationDatasetUnfit(EvaluationFailure):
    """No row of the dataset can be asked."""

    code = "dataset_unfit"
