"""Drafts repeat what followed the last tokens where they occurred before."""

from worker.inference.batching.drafts import NgramDrafts


def read(prompt, answer=()):
    drafts = NgramDrafts(prompt)
    for token in answer:
        drafts.add(token)
    return drafts


def test_the_text_after_the_last_occurrence_is_expected():
    drafts = read([1, 2, 3, 7, 8, 9, 1, 2, 3, 4, 5, 6], answer=[1, 2, 3])

    assert drafts.expect(3).token_ids == [4, 5, 6]


def test_two_equal_tokens_are_no_occurrence():
    assert not read([1, 2, 3, 4], answer=[9, 2, 3]).has_match
    assert read([1, 2, 3, 4], answer=[9, 2, 3]).expect(3).token_ids == []


def test_the_end_of_a_prompt_may_occur_in_it():
    assert read([1, 2, 3, 4, 9, 1, 2, 3]).expect(2).token_ids == [4, 9]


def test_an_occurrence_is_followed_although_there_is_a_later_one():
    prompt = [5, 6, 1, 2, 3, 4, 8, 1, 2, 3, 7, 0]
    # After 5, 6 the answer is at the first occurrence of 1, 2, 3.
    assert read([9, *prompt], answer=[9, 5, 6, 1, 2, 3]).expect(1).token_ids == [4]
    assert read([9, *prompt], answer=[1, 2, 3]).expect(1).token_ids == [7]


def test_a_match_goes_on_after_one_other_token():
    drafts = read(list(range(1, 20)), answer=[1, 2, 3, 4, 5, 99])

    assert drafts.expect(3).token_ids == [7, 8, 9]


def test_a_text_that_repeats_itself_is_expected_to_go_on():
    assert read([9], answer=[1, 2, 3, 1, 2, 3]).expect(7).token_ids == [1, 2, 3, 1, 2, 3, 1]


def test_texts_shorter_than_an_occurrence_have_none():
    for prompt in ([1], [1, 1], [1, 1, 1]):
        assert read(prompt).expect(2).token_ids == []
    assert read([1], answer=[1, 1, 1, 1]).expect(2).token_ids == [1, 1]


def test_long_matches_are_likelier_to_go_on():
    text = list(range(1, 60))
    short, long = read(text, answer=text[:4]), read(text, answer=text[:30])

    assert short.expect(1).probabilities[0] < long.expect(1).probabilities[0]
    assert all(
        a > b for a, b in zip(long.expect(5).probabilities, long.expect(5).probabilities[1:], strict=False)
    )


def test_an_answer_that_never_goes_on_as_expected_makes_that_improbable():
    prompt = [token for start in range(100, 200) for token in (1, 2, 3, start)]
    drafts = read(prompt)
    before = read(prompt, answer=[1, 2, 3]).expect(1).probabilities[0]
    for other in range(300, 320):
        for token in (1, 2, 3, other):
            drafts.add(token)
    for token in (1, 2, 3):
        drafts.add(token)

    assert drafts.expect(1).probabilities[0] < before / 3


def test_of_a_long_prompt_the_end_is_searched():
    prompt = [*range(10, 40_010), 1, 2, 3]

    assert read(prompt, answer=[40_000, 40_001, 40_002]).expect(1).token_ids == [40_003]
    assert not read(prompt, answer=[10, 11, 12]).has_match


def test_a_prediction_is_expected_from_its_beginning():
    prediction = list(range(50, 70))
    drafts = NgramDrafts([1, 2, 3], prediction)

    assert drafts.expect(4).token_ids == [50, 51, 52, 53]
    drafts.add(50)
    assert drafts.expect(2).token_ids == [51, 52]


def test_a_prediction_is_found_again_after_other_tokens():
    prediction = list(range(50, 70))
    drafts = NgramDrafts([1, 2, 3], prediction)
    for token in (7, 8, 9, 55, 56, 57):
        drafts.add(token)

    assert drafts.expect(2).token_ids == [58, 59]
