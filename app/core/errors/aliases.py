"""Errors of aliases: names that are taken, versions that have changed, targets that can't be served."""

from app.core.errors import Conflict, InvalidRequest, NotFound, PreconditionFailed


class AliasInvalid(InvalidRequest):
    """An alias can't point there."""

    code = "alias_invalid"


class AliasAmbiguous(InvalidRequest):
    """The alias points to several models, and one is needed."""

    code = "alias_ambiguous"


class AliasNotFound(NotFound):
    """There is no such alias."""

    code = "alias_not_found"


class AliasNameTaken(Conflict):
    """An adapter or a base model has this name."""

    code = "alias_name_taken"


class AliasTargetGone(Conflict):
    """An adapter of that version was deleted."""

    code = "alias_target_gone"


class AliasChanged(PreconditionFailed):
    """The alias is of another version than the request expects."""

    code = "alias_changed"
