"""Formats and encodings of files as people write them for TRL, pandas and other tools."""

import pytest

from app.core.datasets.rows import Completion, PlainText
from tests.core.datasets.outcomes import (
    ASKED,
    QA,
    Refused,
    Taken,
    check_outcome,
    said,
    structs,
    turns,
)
from tests.core.datasets.uploads import parquet
from tests.factories import jsonl

FILES: dict[str, tuple[bytes, Taken | Refused]] = {
    # Prompt and completion
    "TRL, conversational": (
        jsonl([{"prompt": [said("system", "s"), ASKED[0]], "completion": [ASKED[1]]}]),
        Taken(turns("q", "a", system="s")),
    ),
    "TRL, half conversational": (
        jsonl([{"prompt": [ASKED[0]], "completion": "a"}]),
        Refused("'prompt' is a list and 'completion' is text. Write both"),
    ),
    "a number": (jsonl([{"prompt": "p", "completion": 0}]), Refused("must be text, found a number")),
    "an end token": (
        jsonl([{"prompt": "p", "completion": " c<|im_end|>"}]),
        Taken(Completion("p", " c<|im_end|>")),
    ),
    "questions and answers": (
        jsonl([{"question": "q", "answer": "a"}]),
        Refused('column_map, for example {"instruction": "question", "output": "answer"}'),
    ),
    "messages and a prompt": (
        jsonl([{"messages": ASKED, "prompt": "q", "prompt_id": "1"}]),
        Taken(QA, ["prompt", "prompt_id"]),
    ),
    "two formats": (
        jsonl([{"messages": ASKED, "prompt": "q", "completion": "a"}]),
        Refused("fit several formats: messages or prompt, completion."),
    ),
    # Files
    "CSV with a byte order mark": (
        b'\xef\xbb\xbfprompt,completion\n"p\nq","c ""d"""\n',
        Taken(Completion("p\nq", 'c "d"')),
    ),
    "CSV in another encoding": (
        b"prompt;completion\nWie geht\x92s?;gut\n",
        Refused("Save the file as UTF-8."),
    ),
    "CSV of pandas, with its index": (
        b",prompt,completion\n0,p,c\n",
        Taken(Completion("p", "c"), ["(unnamed)"]),
    ),
    "CSV, the text NA": (b"prompt,completion\np,NA\n", Taken(Completion("p", "NA"))),
    "Parquet, plain": (
        parquet(structs("NULL") + ", 's' AS source"),
        Taken(QA, ["source"]),
    ),
    "Parquet, keys of two formats": (
        parquet(
            "SELECT [{'from': 'human', 'value': 'q', 'role': NULL, 'content': NULL, 'weight': NULL::DOUBLE}, "
            "{'from': 'gpt', 'value': 'a', 'role': NULL, 'content': NULL, 'weight': 1}] AS conversations, "
            "{'role': NULL, 'content': NULL} AS chosen, '' AS system"
        ),
        Taken(QA),
    ),
    "Parquet, a chosen answer": (
        parquet(
            "SELECT [{'from': 'human', 'value': 'q'}, {'from': 'gpt', 'value': 'a'}] AS conversations, "
            "{'role': 'assistant', 'content': 'a'} AS chosen"
        ),
        Refused("'chosen' (preferences)"),
    ),
    "wrapped in an object": (
        b'{"data": [{"prompt": "p", "completion": "c"}]}',
        Refused("the list in 'data'"),
    ),
    "whole columns": (b'{"prompt": ["p", "q"], "completion": ["c", "d"]}', Refused("holds whole columns.")),
    "spread over lines": (b'{\n "text": "t"\n}\n{\n "text": "u"\n}\n', Taken(PlainText("t"))),
    "commas after the lines": (
        b'{"text": "t"},\n{"text": "u"},\n',
        Refused("a comma follows the JSON object"),
    ),
    "single quotes": (b"{'text': 't'}\n", Refused("double quotes")),
    "a key twice": (b'{"text": "t", "text": "u"}\n', Refused("the key 'text' is there twice")),
    "a line separator in a text": (
        '{"text": "a\u2028b\u0085c"}\n'.encode(),
        Taken(PlainText("a\u2028b\u0085c")),
    ),
    "UTF-16": ('\ufeff{"text": "t"}\n'.encode("utf-16-le"), Taken(PlainText("t"))),
}


@pytest.mark.parametrize(("content", "outcome"), FILES.values(), ids=FILES)
def test_a_file_is_learned_or_named_or_refused(content: bytes, outcome: Taken | Refused) -> None:
    check_outcome(content, outcome)
