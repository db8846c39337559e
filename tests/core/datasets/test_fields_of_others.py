"""Fields of files as people write them for OpenAI, TRL, ms-swift, DeepSeek, gpt-oss and others.

Nothing that a file says is dropped: it is learned, or named as not used, or the file is refused.
"""

import pytest

from app.core.datasets.rows import Completion, PlainText
from tests.core.datasets.outcomes import (
    ASKED,
    CALL,
    QA,
    TOOL,
    Refused,
    Taken,
    chat,
    check_outcome,
    said,
    sharegpt,
    structs,
    turns,
)
from tests.core.datasets.uploads import parquet
from tests.factories import jsonl

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
}


@pytest.mark.parametrize(("content", "outcome"), FILES.values(), ids=FILES)
def test_a_file_is_learned_or_named_or_refused(content: bytes, outcome: Taken | Refused) -> None:
    check_outcome(content, outcome)
