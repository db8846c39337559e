"""Errors of leases on work."""

from app.core.errors import TunesmithError


class LeaseLost(TunesmithError):
    """Another worker owns this job now."""

    code = "lease_lost"
