"""Text is sent in whole characters and without any part of a stop string."""

import random

import pytest

from worker.inference.sampling.text_stream import Detokenizer, StopStrings


def decode_bytes(ids: list[int]) -> str:
    """Every token is one byte."""
    return bytes(ids).decode(errors="replace")


def decode_bytes_together(ids: list[int]) -> str:
    """Decodes as sentencepiece's byte fallback: one bad byte breaks the whole run."""
    try:
        return bytes(ids).decode()
    except UnicodeDecodeError:
        return "\N{REPLACEMENT CHARACTER}" * len(ids)


def pieces_of(text: str, decode=decode_bytes) -> list[str]:
    detokenizer = Detokenizer(decode)
    return [detokenizer.add(token_id) for token_id in text.encode()] + [detokenizer.finish()]


@pytest.mark.parametrize("decode", [decode_bytes, decode_bytes_together])
@pytest.mark.parametrize("text", ["plain", "naïve café", "👍🏽 ok 🎉🎉", "日本語テキスト"])
def test_characters_come_whole(text, decode):
    pieces = pieces_of(text, decode)

    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_half_a_character_at_the_end_is_left_out():
    detokenizer = Detokenizer(decode_bytes)

    pieces = [detokenizer.add(token_id) for token_id in "ok 🎉".encode()[:-1]]

    assert "".join(pieces) + detokenizer.finish() == "ok "


def test_bytes_that_are_no_character_do_not_block_the_rest():
    detokenizer = Detokenizer(decode_bytes)

    pieces = [detokenizer.add(0xFF) for _ in range(40)] + [detokenizer.add(token_id) for token_id in b"ok"]

    assert "".join(pieces).endswith("ok")


def test_tokens_without_text_are_skipped():
    detokenizer = Detokenizer(lambda ids: "".join(chr(i) for i in ids if i))

    pieces = [detokenizer.add(token_id) for token_id in (104, *[0] * 40, 105)]

    assert "".join(pieces) == "hi"


def test_the_prompt_decides_on_a_leading_space():
    def decode(ids: list[int]) -> str:
        return "".join(f" {token_id}" for token_id in ids)[1:]

    after_prompt, alone = Detokenizer(decode, context_ids=[7]), Detokenizer(decode)

    assert (after_prompt.add(8), alone.add(8)) == (" 8", "8")


def test_text_before_a_stop_string_goes_out_and_nothing_of_it():
    stops = StopStrings(["END"])

    sent = [stops.add(text) for text in ("one E", "N two E", "N", "D three")]

    assert sent == ["one ", "EN two ", "", ""]
    assert stops.found


def test_buffered_text_without_a_stop_string_is_sent_at_the_end():
    stops = StopStrings(["END"])

    assert stops.add("the EN") == "the "
    assert stops.flush() == "EN"
    assert not stops.found


@pytest.mark.parametrize("seed", range(50))
def test_any_cut_into_pieces_stops_at_the_same_place(seed):
    rng = random.Random(seed)
    text = "".join(rng.choices("ab", k=30))
    wanted = ["".join(rng.choices("ab", k=rng.randint(2, 6))) for _ in range(2)]
    stops, sent, at = StopStrings(wanted), "", 0
    while at < len(text) and not stops.found:
        size = rng.randint(1, 4)
        sent, at = sent + stops.add(text[at : at + size]), at + size
        assert not any(stop in sent for stop in wanted)

    starts = [start for stop in wanted if (start := text[:at].find(stop)) >= 0]
    assert stops.found == bool(starts)
    assert sent + stops.flush() == text[: min(starts, default=len(text))]


class CountedText(str):
    """Text that counts how many of its characters are looked at."""

    __slots__ = ("looked_at",)

    def __getitem__(self, key):
        self.looked_at = getattr(self, "looked_at", 0) + 1
        return super().__getitem__(key)


@pytest.mark.parametrize("stop", ["a" * 5_000 + "b", "ab" * 2_500 + "c", "aab" * 1_700 + "c"])
def test_a_long_stop_string_takes_time_in_proportion_to_the_text(stop):
    pattern = CountedText(stop)
    stops = StopStrings([pattern])
    text = (stop[:-1] * 3)[:12_000]

    sent = [stops.add(character) for character in text]

    assert "".join(sent) + stops.flush() == text
    assert pattern.looked_at < 10 * len(text)
