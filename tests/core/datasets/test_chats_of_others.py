"""Turns of chats as people write them for OpenAI, ms-swift, axolotl, LLaMA-Factory and Gemini."""

import pytest

from app.core.datasets.inspection import refuse_fields
from tests.core.datasets.outcomes import (
    ALPACA,
    ASKED,
    QA,
    Refused,
    Taken,
    chat,
    check_outcome,
    said,
    sharegpt,
    turns,
)
from tests.core.datasets.uploads import inspected, parquet
from tests.factories import jsonl

FILES: dict[str, tuple[bytes, Taken | Refused]] = {
    # Alpaca
    "Alpaca, input in some rows": (jsonl([{"instruction": "q", "output": "a"}, ALPACA]), Taken(QA)),
    "Alpaca, null": (jsonl([ALPACA | {"input": None}]), Taken(QA)),
    "Alpaca, NaN of pandas": (jsonl([ALPACA | {"input": float("nan")}]), Taken(QA)),
    "Alpaca, history": (
        jsonl([ALPACA | {"history": [["q1", "a1"], ["q2", "a2"]], "system": "s"}]),
        Taken(turns("q1", "a1", "q2", "a2", "q", "a", system="s")),
    ),
    "Alpaca, history of messages": (
        jsonl(
            [ALPACA | {"history": [said("system", "s"), ASKED[0], said("assistant", "a1", weight=0, id=1)]}]
        ),
        Taken(turns("q", "a1", "q", "a", system="s", unlearned=1), ["history[].id"]),
    ),
    "Alpaca, history that ends with a question": (
        jsonl([ALPACA | {"history": [ASKED[0]]}]),
        Refused("message 2 must be from the assistant, found 'user'"),
    ),
    "Alpaca, system_prompt": (
        jsonl([ALPACA | {"system_prompt": "be kind"}]),
        Taken(turns("q", "a", system="be kind")),
    ),
    "a developer's prompt": (
        chat(*ASKED, developer="s"),
        Refused('(line 1). To learn it: column_map={"system": "developer"}. Remove'),
    ),
    "a developer's prompt and images": (
        chat(*ASKED, developer="s", images=["i"]),
        Refused('That is not supported yet. To learn it: column_map={"system": "developer"}. Remove'),
    ),
    "two system prompts": (chat(*ASKED, system="s", system_prompt="t"), Refused("'system_prompt' (a system")),
    "Parquet, system_prompt in some rows": (
        parquet(
            "SELECT 'q' AS instruction, 'a' AS output, NULL AS system, "
            "repeat('s', 100) AS system_prompt, '' AS systemInstruction"
        ),
        Taken(turns("q", "a", system="s" * 100), ["systemInstruction"]),
    ),
    "a system prompt without a chat": (
        jsonl([{"text": "t", "system_prompt": "s"}]),
        Refused(
            "'system_prompt' (a system prompt) in 1 of 1 rows (line 1). That is not supported yet. Remove"
        ),
    ),
    "Alpaca, a rendered text": (
        jsonl([ALPACA | {"text": "Below is …"}]),
        Refused('Say which with column_map: {"text": "text"} or {"instruction": "instruction"'),
    ),
    # Roles and order
    "OpenAI, developer": (chat(said("developer", "s"), *ASKED), Taken(turns("q", "a", system="s"))),
    "capital roles": (chat(said("User", "q"), said("Assistant", "a")), Taken(QA)),
    "Gemma, model": (chat(said("user", "q"), said("model", "a")), Taken(QA)),
    "Gemini": (
        jsonl([{"contents": [{"role": "user", "parts": [{"text": "q"}]}]}]),
        Refused('If \'contents\' holds messages: column_map={"messages": "contents"}.'),
    ),
    "a name in a message": (chat(said("user", "q", name="ann"), ASKED[1]), Taken(QA, ["messages[].name"])),
    "two users in a row": (chat(ASKED[0], *ASKED), Refused("message 2 must be from the assistant")),
    "ShareGPT, the assistant begins": (
        sharegpt(("gpt", "hi"), ("human", "q"), ("gpt", "a")),
        Refused("message 1 must be from the user"),
    ),
    "the user ends": (chat(*ASKED, ASKED[0]), Refused("the last message must be from the assistant")),
    "a system prompt in the middle": (
        chat(*ASKED, said("system", "s"), *ASKED),
        Refused("message 3 must be"),
    ),
    "ShareGPT, extra columns": (
        sharegpt(("human", "q"), ("gpt", "a"), id="1", category="x"),
        Taken(QA, ["id", "category"]),
    ),
    "ShareGPT, names of OpenAI": (sharegpt(("user", "q"), ("assistant", "a")), Taken(QA)),
    "ShareGPT, keys of OpenAI": (jsonl([{"conversations": ASKED}]), Taken(QA)),
    "ShareGPT, one system prompt twice": (
        sharegpt(("system", "s"), ("human", "q"), ("gpt", "a"), system="s"),
        Taken(turns("q", "a", system="s")),
    ),
    "ShareGPT, two system prompts": (
        sharegpt(("system", "s"), ("human", "q"), ("gpt", "a"), system="t"),
        Refused("the row has two system prompts, a column and a message, that differ. Keep one."),
    ),
    # Flags of turns
    "OpenAI, weight": (
        chat(ASKED[0], said("assistant", "a", weight=0), *ASKED),
        Taken(turns("q", "a", "q", "a", unlearned=1)),
    ),
    "ms-swift, loss": (
        chat(ASKED[0], said("assistant", "a", loss=False), ASKED[0], said("assistant", "a", loss=True)),
        Taken(turns("q", "a", "q", "a", unlearned=1)),
    ),
    "axolotl, train": (
        jsonl(
            [
                {
                    "conversations": [
                        {"from": "human", "value": "q"},
                        {"from": "gpt", "value": "a", "train": False},
                        {"from": "human", "value": "q"},
                        {"from": "gpt", "value": "a", "train": True},
                    ]
                }
            ]
        ),
        Taken(turns("q", "a", "q", "a", unlearned=1)),
    ),
    "axolotl, train_detail": (
        chat(ASKED[0], said("assistant", "a", train_detail=[{"begin_offset": 0}])),
        Refused("'messages[].train_detail' (a loss mask)"),
    ),
    "weight 0 everywhere": (chat(ASKED[0], said("assistant", "a", weight=0)), Refused("nothing to learn")),
    "weight 0.5": (chat(ASKED[0], said("assistant", "a", weight=0.5)), Refused("neither 0 nor 1")),
}


@pytest.mark.parametrize(("content", "outcome"), FILES.values(), ids=FILES)
def test_a_file_is_learned_or_named_or_refused(content: bytes, outcome: Taken | Refused) -> None:
    check_outcome(content, outcome)


def test_the_turns_of_gemini_are_understood_where_a_map_names_them() -> None:
    contents = [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}]
    upload = inspected(jsonl([{"contents": contents, "systemInstruction": "s"}]), {"messages": "contents"})
    assert upload.rows == [(1, turns("q", "a", system="s"))]
    refuse_fields(upload.found)
