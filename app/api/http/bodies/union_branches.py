"""Chooses, of pydantic's errors for a value that fits no branch of a union, those of the branch meant.

pydantic reports the errors of every branch: for a list of message parts with a wrong part, also that the list
is no string. Pure.
"""

import math
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

Problem = dict[str, Any]
Loc = Sequence[str | int]

# The names of fields by which clients choose among kinds of objects.
_TAGS = {"type", "role", "object"}
_OTHER_KIND_OF_VALUE = ("_type", "_parsing")
_OTHER_WORD = {"literal_error", "enum"}


def choose_branches(problems: Sequence[Problem], body: object) -> list[Problem]:
    """Returns the problems without those of branches that were not meant; each `loc` begins at the body."""
    chosen = list(problems)
    for depth in range(max((len(problem["loc"]) for problem in problems), default=0)):
        unions: dict[Loc, dict[str | int, list[Problem]]] = {}
        for problem in chosen:
            loc = problem["loc"]
            if len(loc) > depth and not names_a_field(problem, depth, body):
                unions.setdefault(loc[:depth], {}).setdefault(loc[depth], []).append(problem)
        meant = {loc: _closest(branches, depth + 1) for loc, branches in unions.items()}
        chosen = [
            problem
            for problem in chosen
            if (branches := meant.get(problem["loc"][:depth])) is None
            or len(problem["loc"]) <= depth
            or names_a_field(problem, depth, body)
            or problem["loc"][depth] in branches
        ]
    return chosen


def names_a_field(problem: Problem, depth: int, body: object) -> bool:
    """Whether the part of `loc` at this depth names a field or an item; others name branches of unions."""
    loc = problem["loc"]
    node = body
    for part in loc[:depth]:
        if _holds(node, part):
            node = node[part]  # type: ignore[index]
    return _holds(node, loc[depth]) or (problem["type"] == "missing" and depth == len(loc) - 1)


def _holds(node: object, part: str | int) -> bool:
    if isinstance(node, list):
        return isinstance(part, int) and part < len(node)
    return isinstance(node, dict) and part in node


def _closest(branches: dict[str | int, list[Problem]], start: int) -> set[str | int]:
    """The labels of the branches that the value fits best; `start`: where `loc` continues inside a branch."""
    fits = {label: _fit(branch, start) for label, branch in branches.items()}
    best = max(fits.values())
    return {label for label, fit in fits.items() if fit == best}


def _fit(branch: list[Problem], start: int) -> tuple[bool, bool, list[float], bool]:
    """How well a value fits a branch.

    Returns whether it is of the branch's kind, whether it has its tag, how many items come before the first
    wrong one, and whether that one is of the right kind.
    """
    is_of_kind = not any(len(problem["loc"]) == start and _is_of_other_kind(problem) for problem in branch)
    has_tag = not any(
        problem["loc"][start:] in {(tag,) for tag in _TAGS} and problem["type"] in _OTHER_WORD
        for problem in branch
    )
    first = branch[0]
    inside = first["loc"][start:]
    items = [float(item) for item in takewhile(lambda part: isinstance(part, int), inside)]
    # A value that is wrong as a whole, as a list that is too long, has no wrong item.
    return is_of_kind, has_tag, items if inside else [math.inf], not _is_of_other_kind(first)


def _is_of_other_kind(problem: Problem) -> bool:
    return problem["type"].endswith(_OTHER_KIND_OF_VALUE) or problem["type"] in _OTHER_WORD
