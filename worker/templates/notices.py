"""Notices about what a chat template makes of rows, for previews, preflights and jobs."""

from collections.abc import Callable, Iterator

from app.core.engine.preflight import Notice
from worker.templates.token_rows import AnyTokenRow, EncodedRow, FormattedRows

PLAIN_FUNCTIONS = (
    "The chat template has no place for functions or calls: they are written as text in the form of Hermes "
    "and Qwen, <tool_call>{…}</tool_call>, in training and in serving."
)


def describe_row(row: EncodedRow) -> list[str]:
    """What should be known about one row."""
    notices = [f"The chat template leaves out {omission}." for omission in row.omissions]
    if row.has_empty_thought:
        notices.append(
            "The prompt opens a thought, and the answer has none: the model learns to end an empty one."
        )
    if row.has_plain_functions:
        notices.append(PLAIN_FUNCTIONS)
    return notices


def describe_rows(
    formatted: FormattedRows[AnyTokenRow], extrapolate: Callable[[int], int] = lambda count: count
) -> Iterator[Notice]:
    """Yield what should be known about a dataset's rows; `extrapolate` scales a count of rows to all."""
    if formatted.omissions:
        line, omission = formatted.omissions[0]
        rows = _count(extrapolate(len(formatted.omissions)))
        yield Notice(
            code="template_omits",
            message=f"The chat template leaves out a part of {rows}, which the model does not read. In line "
            f"{line} these are {omission}.",
        )
    if formatted.empty_thought_lines:
        line, rows = formatted.empty_thought_lines[0], _count(extrapolate(len(formatted.empty_thought_lines)))
        yield Notice(
            code="empty_thoughts",
            message=f"The chat template's prompt opens a thought, and the answer has none in {rows}, line "
            f"{line} first: the model learns to end an empty thought.",
        )

    if formatted.plain_function_lines:
        yield Notice(code="plain_functions", message=PLAIN_FUNCTIONS)


def _count(rows: int) -> str:
    return f"{rows:,} row{'' if rows == 1 else 's'}"
