"""How a command fails: the message and the hint for the person, the exit status for scripts."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit status of every command; docs/cli.md documents them."""

    ERROR = 1  # the API refused the request, or the job did not succeed
    USAGE = 2  # the command line or the job file is wrong
    UNREACHABLE = 3
    UNAUTHORIZED = 4
    NOT_FOUND = 5
    CONFLICT = 6
    BUSY = 7
    INTERRUPTED = 130


@dataclass(frozen=True)
class LineProblem:
    """A line of an uploaded file that can't be used."""

    line: int
    message: str


class CommandFailed(Exception):
    """The command can't do what it was asked; the message and the hint say why and what to do next."""

    def __init__(
        self,
        message: str,
        *,
        exit_code: ExitCode = ExitCode.ERROR,
        code: str = "command_failed",
        hint: str | None = None,
        param: str | None = None,
        problems: Sequence[LineProblem] = (),
        sample: object = None,
    ) -> None:
        self.message = message
        self.exit_code = exit_code
        self.code = code
        self.hint = hint
        self.param = param
        self.problems = list(problems)
        # The first records of an uploaded file whose columns are unknown, as the API sent them.
        self.sample = sample
        super().__init__(message)


class UsageProblem(CommandFailed):
    """The command line, or a file that it names, is wrong."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, exit_code=ExitCode.USAGE, code="usage", hint=hint)


class Unreachable(CommandFailed):
    """No API answers at this address."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"No API answers at {url}: {reason}.",
            exit_code=ExitCode.UNREACHABLE,
            code="unreachable",
            hint="`tunesmith up` starts one here. --url, TUNESMITH_URL or `tunesmith login` name another.",
        )
