"""Exports and datasets to fetch, for tests of those who run them."""

from tests.worker.exports.conftest import base, submit as submit_export
from tests.worker.fetching.conftest import hub, submit as submit_fetch

__all__ = ["base", "hub", "submit_export", "submit_fetch"]
