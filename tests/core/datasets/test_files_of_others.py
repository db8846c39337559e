"""What becomes of files as people write them for OpenAI, TRL, ms-swift, axolotl, LLaMA-Factory and pandas.

Nothing that a file says is dropped: it is learned, or named as not used, or the file is refused.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest

from app.core.datasets.inspection import refuse_fields, refuse_problems
from app.core.datasets.rows import Completion, Conversation, Message, PlainText, Row
from app.core.errors.datasets import DatasetInvalid
from tests.core.datasets.uploads import inspected, parquet
from tests.factories import jsonl

CALL = {"id": "call_1", "type": "function", "function": {"name": "get_tide", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "get_tide", "parameters": {}}}
ASKED = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@dataclass
class Taken:
    """The first row, and the fields that are named as not used."""

    row: Row
    unused: list[str] = field(default_factory=list)


@dataclass
class Refused:
    """Words of the message or the hint."""

    said: str


def turns(*texts: str, system: str | None = None, unlearned: int | None = None) -> Conversation:
    roles = ("user", "assistant") * len(texts)
    spoken = [Message(role, text) for role, text in zip(roles, texts, strict=False)]
    if unlearned is not None:
        spoken[unlearned] = Message("assistant", texts[unlearned], weight=0)
    return Conversation((*([Message("system", system)] if system else []), *spoken))


def chat(*messages: dict[str, Any], **columns: Any) -> bytes:
    return jsonl([{"messages": list(messages), **columns}])


def said(role: str, content: Any, **keys: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **keys}


def sharegpt(*messages: tuple[str, str], **columns: Any) -> bytes:
    return jsonl([{"conversations": [{"from": who, "value": text} for who, text in messages], **columns}])


QA = turns("q", "a")
ALPACA = {"instruction": "q", "input": "", "output": "a"}


def structs(last_keys: str) -> str:
    return (
        "SELECT [{'role': 'user', 'content': 'q', 'tool_calls': NULL}, "
        f"{{'role': 'assistant', 'content': 'a', 'tool_calls': {last_keys}}}] AS messages"
    )


FILES: dict[str, tuple[bytes, Taken | Refused]] = {
    # Tools
    "OpenAI, a call without text": (
        chat(said("user", "q"), said("assistant", None, tool_calls=[CALL]), said("tool", "1"), tools=[TOOL]),
        Refused("message 2 only calls a tool: tool calls are not supported yet."),
    ),
    "OpenAI, a call with an empty text": (
        chat(said("user", "q"), said("assistant", "", tool_calls=[CALL])),
        Refused("message 2 only calls a tool"),
    ),
    "OpenAI, a call with a text": (
        chat(said("user", "q"), said("assistant", "a", tool_calls=[CALL]), tools=[TOOL]),
        Refused("'messages[].tool_calls' (tools) in 1 of 1 rows (line 1); 'tools' (tools)"),
    ),
    "OpenAI, tools that are not called": (
        chat(*ASKED, tools=[TOOL], parallel_tool_calls=False),
        Refused("'tools' (tools) in 1 of 1 rows (line 1). That"),
    ),
    "OpenAI, the older functions": (
        chat(
            said("user", "q"), said("assistant", "a", function_call={"name": "f"}), functions=[{"name": "f"}]
        ),
        Refused("'messages[].function_call' (tools) in 1 of 1 rows (line 1); 'functions' (tools)"),
    ),
    "OpenAI, no tools": (chat(*ASKED, tools=None), Taken(QA)),
    "OpenAI, settings without tools": (
        chat(*ASKED, parallel_tool_calls=False, tool_choice="auto"),
        Taken(QA, ["parallel_tool_calls", "tool_choice"]),
    ),
    "reasoning that is switched off": (
        chat(ASKED[0], said("assistant", "a", thinking=False), reasoning="Off", tools=True),
        Taken(QA, ["messages[].thinking", "reasoning", "tools"]),
    ),
    "CSV, reasoning that is switched on": (
        b"prompt,completion,thinking\np,c,True\n",
        Taken(Completion("p", "c"), ["thinking"]),
    ),
    "Parquet, reasoning that is switched off": (
        parquet("SELECT 't' AS text, 'off' AS reasoning, false AS thinking"),
        Taken(PlainText("t"), ["reasoning", "thinking"]),
    ),
    "LLaMA-Factory, turns of tools": (
        sharegpt(("human", "q"), ("function_call", "{}"), ("observation", "1"), ("gpt", "a"), tools="[]"),
        Refused("message 2 has the role 'function_call': tool turns are not supported yet."),
    ),
    "LLaMA-Factory, empty tools": (sharegpt(("human", "q"), ("gpt", "a"), tools="[]"), Taken(QA, ["tools"])),
    "Parquet, null for tool calls": (
        parquet(structs("NULL")),
        Taken(QA),
    ),
    "Parquet, a tool call": (
        parquet(structs("[{'id': 1}]")),
        Refused("'messages[].tool_calls' (tools) in 1 of 1 rows (row 1)"),
    ),
    # Reasoning
    "DeepSeek, reasoning_content": (
        chat(said("user", "q"), said("assistant", "a", reasoning_content="r")),
        Refused("'messages[].reasoning_content' (reasoning)"),
    ),
    "gpt-oss, thinking": (
        chat(said("user", "q"), said("assistant", "a", thinking="r")),
        Refused("'messages[].thinking' (reasoning)"),
    ),
    "Qwen, thoughts in the text": (
        chat(said("user", "q"), said("assistant", "<think>\nr\n</think>\n\na")),
        Taken(turns("q", "<think>\nr\n</think>\n\na")),
    ),
    # Preferences
    "TRL, DPO": (
        jsonl([{"prompt": "p", "chosen": "c", "rejected": "r"}]),
        Refused('column_map={"prompt": "prompt", "completion": "chosen"}, on_unused=ignore'),
    ),
    "TRL, DPO without a prompt": (
        jsonl([{"chosen": ASKED, "rejected": ASKED}]),
        Refused('column_map={"messages": "chosen"}, on_unused=ignore'),
    ),
    "TRL, KTO": (jsonl([{"prompt": "p", "completion": "c", "label": False}]), Refused("'label' (labels)")),
    "ms-swift, DPO": (chat(*ASKED, rejected_response="r"), Refused("'rejected_response' (preferences)")),
    "OpenAI, preferences": (
        jsonl([{"input": {"messages": ASKED}, "preferred_output": ASKED, "non_preferred_output": ASKED}]),
        Refused("hold preferences between answers, which can't be learned from yet."),
    ),
    "preferences by another name": (
        chat(*ASKED, dispreferred_answer="r"),
        Refused("'dispreferred_answer' (preferences)"),
    ),
    # Parts of the question
    "Dolly, a context": (
        jsonl([{"instruction": "q", "context": "k", "output": "a"}]),
        Refused('question) in 1 of 1 rows (line 1). To learn it: column_map={"input": "context"}. Remove'),
    ),
    "Parquet, documents": (
        parquet("SELECT 'p' AS prompt, 'c' AS completion, ['d'] AS documents"),
        Refused("'documents' (a part of the question)"),
    ),
    "passages beside messages": (
        chat(*ASKED, passages=["k"]),
        Refused("'passages' (a part of the question)"),
    ),
    "a document without a question": (
        jsonl([{"text": "t", "document": "d"}]),
        Taken(PlainText("t"), ["document"]),
    ),
    "numbers of documents": (
        parquet("SELECT 'p' AS prompt, 'c' AS completion, 7 AS document"),
        Taken(Completion("p", "c"), ["document"]),
    ),
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
    "a developer's prompt and tools": (
        chat(*ASKED, developer="s", tools=[TOOL]),
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
    # Parts, images
    "OpenAI, parts of text": (
        chat(
            said("user", [{"type": "text", "text": "q"}]),
            said("assistant", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        ),
        Taken(turns("q", "ab")),
    ),
    "OpenAI, an image": (
        chat(
            said("user", [{"type": "text", "text": "q"}, {"type": "image_url", "image_url": {"url": "u"}}]),
            said("assistant", "a"),
        ),
        Refused("'messages[].content[].image_url' (images, video or sound)"),
    ),
    "ms-swift, images": (chat(*ASKED, images=["boat.png"]), Refused("'images' (images, video or sound)")),
    "ms-swift, no images": (chat(*ASKED, images=[]), Taken(QA, ["images"])),
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
        Refused('column_map, for example {"prompt": "question", "completion": "answer"}'),
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
    def take() -> Taken:
        upload = inspected(content)
        refuse_problems(upload.found)
        refuse_fields(upload.found)
        return Taken(upload.rows[0][1], [one.field for one in upload.found.unused_fields])

    if isinstance(outcome, Taken):
        assert take() == outcome
        return
    with pytest.raises(DatasetInvalid) as refused:
        take()
    assert outcome.said in f"{refused.value.message} {refused.value.hint}"


def test_the_turns_of_gemini_are_understood_where_a_map_names_them() -> None:
    contents = [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}]
    upload = inspected(jsonl([{"contents": contents, "systemInstruction": "s"}]), {"messages": "contents"})
    assert upload.rows == [(1, turns("q", "a", system="s"))]
    refuse_fields(upload.found)
