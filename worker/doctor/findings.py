"""What an examination found, one line each, and how a screen shows it.

Knows no torch: the supervisor reads it.
"""

from collections.abc import Sequence
from enum import StrEnum

from pydantic import BaseModel, TypeAdapter


class Level(StrEnum):
    """How bad it is. Only a failure keeps jobs from running or answers from coming."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


class Finding(BaseModel):
    """One thing that was looked at."""

    subject: str
    level: Level
    text: str
    hint: str | None = None

    @property
    def sentence(self) -> str:
        """All of it, for where there is one line."""
        return " ".join(part for part in (f"{self.subject}: {self.text}", self.hint) if part)


findings_adapter = TypeAdapter(list[Finding])

_SUBJECT_WIDTH = 14


def ok(subject: str, text: str) -> Finding:
    """All is well."""
    return Finding(subject=subject, level=Level.OK, text=text)


def warning(subject: str, text: str, hint: str | None = None) -> Finding:
    """It works, but a person may want to know."""
    return Finding(subject=subject, level=Level.WARNING, text=text, hint=hint)


def failure(subject: str, text: str, hint: str | None = None) -> Finding:
    """It does not work; the hint says what to do."""
    return Finding(subject=subject, level=Level.FAILURE, text=text, hint=hint)


def failed(findings: Sequence[Finding]) -> list[Finding]:
    """The failures among them."""
    return [finding for finding in findings if finding.level is Level.FAILURE]


def render(findings: Sequence[Finding]) -> str:
    """The screen: a line for each finding, a hint below it, the sum at the end."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:<9}{finding.subject:<{_SUBJECT_WIDTH}}{finding.text}")
        if finding.hint:
            lines.append(" " * (9 + _SUBJECT_WIDTH) + finding.hint)
    count = len(failed(findings))
    lines.append("Nothing is in the way." if not count else f"{count} of {len(findings)} failed.")
    return "\n".join(lines)
