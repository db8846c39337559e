"""What a reader of the code may rely on: folders of a size to look over, and names that are unique."""

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("app", "worker")
MAX_FILES = 16


def test_no_folder_has_more_files_than_can_be_looked_over() -> None:
    folders = Counter(path.parent for name in (*PACKAGES, "tests") for path in (ROOT / name).rglob("*.py"))

    assert {str(folder): count for folder, count in folders.items() if count > MAX_FILES} == {}


def test_no_two_classes_have_one_name() -> None:
    names = Counter(
        node.name
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.ClassDef)
    )

    assert [name for name, count in names.items() if count > 1] == []
