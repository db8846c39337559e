"""The job's dataset as rows of tokens, with a word to the person on what was cut or dropped."""

from transformers import PreTrainedTokenizerBase

from app.core import datasets
from app.core.datasets import DatasetFormat
from worker.chat_templates import ensure_template
from worker.formatting import Formatted, TokenRow, format_rows, hold_out
from worker.training.attempt import Attempt

_LINES_SHOWN = 20
_CHAT = (DatasetFormat.MESSAGES, DatasetFormat.CONVERSATIONS, DatasetFormat.INSTRUCTION)


def prepare_rows(
    attempt: Attempt, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[TokenRow], list[TokenRow]]:
    """(rows to train on, rows to evaluate on), with a word on what was cut or dropped."""
    request, training = attempt.request, attempt.request.spec.training
    if ensure_template(tokenizer) and request.dataset_format in _CHAT:
        attempt.warn(
            "no_chat_template", "The base model has no chat template; conversations are rendered plainly."
        )
    if training.max_seq_length and training.max_seq_length > max_length:
        attempt.warn(
            "context_length",
            f"max_seq_length is {training.max_seq_length}, but the base model reads at most {max_length} "
            "tokens.",
        )
    with request.dataset.open("rb") as lines:
        formatted = format_rows(
            datasets.read_rows(lines),
            tokenizer,
            assistant_only=training.assistant_only_loss,
            max_length=max_length,
        )
    _tell_losses(attempt, formatted, max_length)
    rows, held_out = hold_out(formatted.rows, training.validation_split, training.seed)
    kept = f"{len(rows)} rows to train on" + (f", {len(held_out)} to evaluate on" if held_out else "")
    share = formatted.trained_tokens / formatted.tokens
    attempt.say(f"{kept}: {formatted.tokens:,} tokens, {share:.0%} of them trained.")
    return rows, held_out


def _tell_losses(attempt: Attempt, formatted: Formatted, max_length: int) -> None:
    if formatted.cut_lines:
        attempt.warn(
            "rows_cut",
            f"{len(formatted.cut_lines)} rows are longer than {max_length} tokens and were cut: "
            f"{_name_lines(formatted.cut_lines)}.",
        )
    if formatted.dropped_lines:
        attempt.warn(
            "rows_dropped",
            f"{len(formatted.dropped_lines)} rows keep no token to learn from and were left out: "
            f"{_name_lines(formatted.dropped_lines)}.",
        )


def _name_lines(lines: list[int]) -> str:
    shown = ", ".join(map(str, lines[:_LINES_SHOWN]))
    more = f" and {len(lines) - _LINES_SHOWN} more" if len(lines) > _LINES_SHOWN else ""
    return f"line{'s' if len(lines) > 1 else ''} {shown}{more}"
