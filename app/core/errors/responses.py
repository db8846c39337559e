"""Errors of stored responses, those of POST /v1/responses."""

from app.core.errors import InvalidRequest, NotFound


class ResponseNotFound(NotFound):
    """There is no such response: it was deleted, has expired, or was not stored."""

    code = "response_not_found"


class PreviousResponseNotFound(InvalidRequest):
    """The response that is to be continued is not there."""

    code = "previous_response_not_found"


class ResponseNotInBackground(InvalidRequest):
    """Only a response that is made in the background can be cancelled."""

    code = "response_not_in_background"
