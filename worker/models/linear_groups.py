"""Which linear layers of a decoder read the same input, so that their products can be computed together.

Knows layers by their names alone; training and serving decide what they do with a group.
"""

from collections.abc import Iterable

# Every supported family calls these with one and the same input, in this order.
_SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_FIRST = {name: names[0] for names in _SAME_INPUT for name in names}
_PLACE = {name: place for names in _SAME_INPUT for place, name in enumerate(names)}


def group_by_input(paths: Iterable[str]) -> list[list[str]]:
    """Group the full names of linear layers: those of one parent that read the same input stand together.

    Within a group they are in the order in which the decoder calls them; a layer that shares its input with
    no other one of `paths` is a group of its own.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        parent, _, name = path.rpartition(".")
        groups.setdefault((parent, _FIRST.get(name, name)), []).append(path)
    return [sorted(group, key=_place) for group in groups.values()]


def _place(path: str) -> int:
    return _PLACE.get(path.rpartition(".")[2], 0)
