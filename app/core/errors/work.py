"""Errors of work in queues, and of leases on it."""

from app.core.errors import Conflict, TunesmithError


class LeaseLost(TunesmithError):
    """Another worker owns this job now."""

    code = "lease_lost"


class NotWaiting(Conflict):
    """The work does not wait any more."""

    code = "not_waiting"
