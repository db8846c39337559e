"""Who has which page: shared beginnings, room for all, nothing lost and nothing given twice."""

import random

from worker.inference.batching.block_manager import PAGE_TOKENS, PageBook, page_count

TEXT = list(range(100))


def read(book: PageBook, adapter_id=None, text=TEXT, length=120):
    owned = book.take(adapter_id, text, length)
    book.learn(adapter_id, text, owned.pages)
    return owned


def test_pages_suffice_for_the_length():
    owned = PageBook(20).take(None, TEXT, 120)

    assert len(set(owned.pages)) == page_count(120)
    assert owned.known_tokens == 0
    assert 0 not in owned.pages


def test_no_room_is_not_now():
    book = PageBook(10)
    owned = book.take(None, TEXT, 120)

    assert book.take("other", TEXT, 120) is None
    book.release(owned.pages)
    assert book.take("other", TEXT, 120) is not None


def test_the_same_beginning_is_shared_while_and_after_it_is_used():
    book = PageBook(40)
    first = read(book)
    second = book.take(None, [*TEXT[:50], 7, 7, 7], 60)
    book.release(first.pages)
    book.release(second.pages)
    third = book.take(None, TEXT, 120)

    assert second.known_tokens == 48
    assert second.pages[:3] == first.pages[:3]
    assert third.known_tokens == 96


def test_adapters_do_not_share():
    book = PageBook(40)
    read(book, "one")

    assert book.take("two", TEXT, 120).known_tokens == 0


def test_the_last_token_is_always_left_to_compute():
    book = PageBook(40)
    text = TEXT[: 2 * PAGE_TOKENS]
    read(book, text=text)

    assert book.take(None, text, 60).known_tokens == PAGE_TOKENS


def test_what_was_not_read_yet_is_waited_for_and_not_shared():
    book = PageBook(40)
    first = book.take(None, TEXT, 120)
    assert book.take(None, TEXT, 120) is None

    book.learn(None, TEXT[:80], first.pages)
    assert book.take(None, TEXT, 120).known_tokens == 80


def test_reader_that_left_half_way_is_waited_for_no_longer():
    book = PageBook(40)
    first = book.take(None, TEXT, 120)
    book.release(first.pages)

    assert book.take(None, TEXT, 120).known_tokens == 0


def test_least_recently_used_text_goes_first():
    book = PageBook(1 + 2 * page_count(120))
    old = read(book, "old")
    new = read(book, "new")
    book.release(old.pages)
    book.release(new.pages)
    book.release(book.take("old", TEXT, 120).pages)
    book.take("third", TEXT, 120)

    assert book.take("old", TEXT, 100).known_tokens == 96


def test_pages_are_never_lost_and_never_given_twice():
    rng = random.Random(0)
    book = PageBook(64)
    held: list[tuple[str | None, list[int], list[int]]] = []
    for _ in range(3000):
        if held and rng.random() < 0.5:
            adapter, text, pages = held.pop(rng.randrange(len(held)))
            if rng.random() < 0.8:
                book.learn(adapter, text, pages)
            book.release(pages)
            continue
        adapter = rng.choice([None, "a"])
        text = [rng.randrange(2)] * rng.choice([1, 16, 40]) + TEXT[: rng.randrange(1, 99)]
        owned = book.take(adapter, text, len(text) + rng.randrange(30))
        if owned is None:
            continue
        fresh = owned.pages[owned.known_tokens // PAGE_TOKENS :]
        assert not set(fresh) & {page for _, _, pages in held for page in pages}
        held.append((adapter, text, owned.pages))
    for _, _, pages in held:
        book.release(pages)

    assert book.used_count == 0
    assert len(book.take("b", [1], 63 * PAGE_TOKENS).pages) == 63
