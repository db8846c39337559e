"""Names that other libraries do not promise to keep are still there, and all of them are listed."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from worker.library_names import LIBRARY_NAMES, LibraryName

WORKER = Path(__file__).parents[2] / "worker"
# Of `os`, and of named tuples.
OF_PYTHON = {"_exit", "_replace"}


@pytest.mark.parametrize("listed", LIBRARY_NAMES, ids=lambda listed: listed.name)
def test_a_name_is_where_it_was(listed: LibraryName) -> None:
    module, _, name = listed.owner.partition(":")
    owner: Any = torch.ops.mkldnn if module == "torch.ops.mkldnn" else importlib.import_module(module)
    owner = getattr(owner, name) if name else owner
    is_there = (
        any(listed.name in inspect.getsource(kind) for kind in owner.__mro__[:-1])
        if listed.is_set_later
        else hasattr(owner, listed.name)
    )
    assert is_there, (
        f"{listed.owner} has no {listed.name} any more. It was there in {listed.seen_in}; {listed.used_in} "
        "uses it."
    )


def test_every_name_with_an_underscore_is_listed() -> None:
    trees = [ast.parse(path.read_text()) for path in WORKER.rglob("*.py") if path.name != "library_names.py"]
    own = {name for tree in trees for name in find_defined(tree)}
    used = {name for tree in trees for name in find_used(tree) if re.match("_[a-z]", name)}

    unlisted = used - own - OF_PYTHON - {listed.name for listed in LIBRARY_NAMES}
    assert not unlisted, f"Not in worker/library_names.py: {sorted(unlisted)}"


def find_defined(tree: ast.AST) -> Iterator[str]:
    """Functions, classes, variables and attributes of `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
            yield from [node.attr] if isinstance(node.ctx, ast.Store) else []


def find_used(tree: ast.AST) -> Iterator[str]:
    """Attributes, also those that `getattr` and `hasattr` name, and what is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(("worker", "app")):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
            yield from (str(part.value) for part in node.args if isinstance(part, ast.Constant))
