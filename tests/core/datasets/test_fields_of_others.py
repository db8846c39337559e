"""Fields of files as people write them for OpenAI, TRL, ms-swift, DeepSeek, gpt-oss and others.

Nothing that a file says is dropped: it is learned, or named as not used, or the file is refused.
"""

import pytest

from app.core.datasets.rows import Completion, PlainText
from tests.core.datasets.outcomes import (
    ASKED,
    QA,
    Refused,
    Taken,
    chat,
    check_outcome,
    said,
    turns,
)
from tests.core.datasets.uploads import parquet
from tests.factories import jsonl

FILES: dict[str, tuple[bytes, Taken | Refused]] = {
    # Preferences
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
