"""Where two texts differ, as a sentence for a person."""

_BEFORE, _AFTER = 30, 40


def show_difference(
    expected: str, found: str, *, expected_name: str = "Expected", found_name: str = "found"
) -> str:
    """The first difference of two texts, with some of the text around it on both sides."""
    length = min(len(expected), len(found))
    place = next((place for place in range(length) if expected[place] != found[place]), length)
    return (
        f"{expected_name} {_cut(expected, place)}, {found_name} {_cut(found, place)} "
        f"(at character {place + 1})."
    )


def _cut(text: str, place: int) -> str:
    begin, end = max(0, place - _BEFORE), place + _AFTER
    return repr(("…" if begin else "") + text[begin:end] + ("…" if end < len(text) else ""))
