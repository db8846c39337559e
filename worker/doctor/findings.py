"""Findings of an examination and their rendering, one line each.

Knows no torch: the supervisor imports it.
"""

from collections.abc import Sequence
from enum import StrEnum

from pydantic import BaseModel, TypeAdapter


class FindingLevel(StrEnum):
    """The severity of a finding. Only a failure prevents training or serving."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


class Finding(BaseModel):
    """The result of one check."""

    subject: str
    level: FindingLevel
    text: str
    hint: str | None = None

    @property
    def sentence(self) -> str:
        """Subject, text and hint in one line."""
        return " ".join(part for part in (f"{self.subject}: {self.text}", self.hint) if part)


findings_adapter = TypeAdapter(list[Finding])

_SUBJECT_WIDTH = 14


def ok(subject: str, text: str) -> Finding:
    """A finding without a problem."""
    return Finding(subject=subject, level=FindingLevel.OK, text=text)


def warning(subject: str, text: str, hint: str | None = None) -> Finding:
    """A finding that prevents nothing but may matter to the user."""
    return Finding(subject=subject, level=FindingLevel.WARNING, text=text, hint=hint)


def failure(subject: str, text: str, hint: str | None = None) -> Finding:
    """A finding that prevents training or serving; the hint says what to do."""
    return Finding(subject=subject, level=FindingLevel.FAILURE, text=text, hint=hint)


def failed(findings: Sequence[Finding]) -> list[Finding]:
    """The failures among the findings."""
    return [finding for finding in findings if finding.level is FindingLevel.FAILURE]


def render(findings: Sequence[Finding]) -> str:
    """Render one line for each finding, its hint below it, and a summary at the end."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:<9}{finding.subject:<{_SUBJECT_WIDTH}}{finding.text}")
        if finding.hint:
            lines.append(" " * (9 + _SUBJECT_WIDTH) + finding.hint)
    count = len(failed(findings))
    lines.append("Nothing is in the way." if not count else f"{count} of {len(findings)} failed.")
    return "\n".join(lines)
