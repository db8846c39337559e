from hypothesis import given, strategies as st

from app.core.engine.messages import (
    Failed,
    MadeToken,
    ReasoningDelta,
    Reply,
    TokenDelta,
    ToolCallDelta,
    join_deltas,
)

TOKEN = MadeToken(token_id=1, bytes=[97], logprob=-1, top=[])
FAILED = Failed(kind="internal", code="x", message="x")


def test_consecutive_deltas_become_one_with_all_their_tokens() -> None:
    first, second = TokenDelta(text="a", tokens=[TOKEN]), TokenDelta(text="b", tokens=[TOKEN, TOKEN])
    assert join_deltas([first, second, FAILED]) == [TokenDelta(text="ab", tokens=[TOKEN] * 3), FAILED]


def test_without_log_probabilities_there_are_no_tokens() -> None:
    assert join_deltas([TokenDelta(text="a"), TokenDelta(text="b")]) == [TokenDelta(text="ab")]


@given(st.lists(st.one_of(st.text().map(lambda text: TokenDelta(text=text)), st.just(FAILED))))
def test_no_text_and_no_end_is_lost_or_moved(replies: list[Reply]) -> None:
    def joined_text(replies: list[Reply]) -> str:
        return "".join(reply.text if isinstance(reply, TokenDelta) else "<end>" for reply in replies)

    assert joined_text(join_deltas(replies)) == joined_text(replies)


def test_parts_of_one_call_are_joined_and_those_of_two_are_not() -> None:
    replies: list[Reply] = [
        ToolCallDelta(index=0, id="a", name="f"),
        ToolCallDelta(index=0, arguments="{", tokens=[TOKEN]),
        ToolCallDelta(index=0, arguments="}"),
        ToolCallDelta(index=1, id="b", name="g"),
        ToolCallDelta(index=1, is_withdrawn=True),
    ]
    assert join_deltas(replies) == [
        ToolCallDelta(index=0, id="a", name="f", arguments="{}", tokens=[TOKEN]),
        *replies[3:],
    ]


def test_thoughts_are_joined_apart_from_the_text() -> None:
    replies: list[Reply] = [ReasoningDelta(text="a"), ReasoningDelta(text="b"), TokenDelta(text="c")]
    assert join_deltas(replies) == [ReasoningDelta(text="ab"), TokenDelta(text="c")]
