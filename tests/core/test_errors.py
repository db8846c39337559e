"""The tree of errors at the top of app/core/errors."""

import pkgutil
import re
from importlib import import_module

from app.core import errors
from app.core.errors import TunesmithError


def listed() -> set[tuple[str, str]]:
    """The tree's pairs of module and class; the module of the package itself is the empty name."""
    pairs, module = set(), ""
    for line in (errors.__doc__ or "").partition("TunesmithError\n")[2].splitlines():
        entry = line.lstrip("│├└─ ")
        if found := re.match(r"(\w+):", entry):
            module = found[1]
        elif line.startswith("├"):
            module = ""
        pairs |= {(module, name) for name in re.findall(r"\b[A-Z]\w+[a-z]\w*", re.sub(r"\(.*?\)", "", entry))}
    return pairs


def defined() -> set[tuple[str, str]]:
    names = ["", *(found.name for found in pkgutil.iter_modules(errors.__path__))]
    modules = {name: import_module(f"{errors.__name__}.{name}".rstrip(".")) for name in names}
    return {
        (name, value.__name__)
        for name, module in modules.items()
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, TunesmithError)
        and value.__module__ == module.__name__
    }


def test_the_tree_names_every_error_with_its_module() -> None:
    assert listed() == defined() - {("", "TunesmithError")}
