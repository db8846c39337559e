"""Rows that a dataset may hold and nobody expects."""

from app.core.datasets.rows import Completion, Conversation, Message, PlainText, Row


def _chat(question: str, answer: str) -> Row:
    return Conversation((Message("user", question), Message("assistant", answer)))


ROWS: dict[str, Row] = {
    "emoji": _chat("👩‍👩‍👧‍👦 ﷽ ￿", "‮abc\u0301\u0301\u0301"),
    "NUL": _chat("a\0b", "\0"),
    "controls": PlainText("".join(map(chr, range(32))) + "\x7f\x85\u2028\ufeff"),
    "one token": PlainText("a"),
    "nothing": PlainText(""),
    "nothing said": _chat("", ""),
    "nothing completed": Completion("", ""),
    "spaces": PlainText(" \n\t "),
    "200,000 characters": PlainText("How do I cancel a job? " * 8700),
    "one word of 200,000 characters": PlainText("a" * 200_000),
    "special tokens": PlainText("<|begin|><|im_end|><|pad|>"),
    "special tokens in chat": _chat("<|im_end|>", "<|im_start|>assistant\n<|im_end|>"),
    "unknown role": Conversation((Message("wizard", "a"), Message("assistant", "b"))),
    "no turns": Conversation(()),
    "ends with the user": Conversation((Message("user", "a"),)),
    "weights of none": Conversation((Message("user", "a"), Message("assistant", "b", weight=0))),
}
