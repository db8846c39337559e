"""README and docs against the code: what is generated is current, and every folder, file and link exists."""

import re
from pathlib import Path

import pytest

from docs import memory_table, settings_page

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
MAX_WORDS = 900
# A file that a person makes, and a folder of the wheel.
NOT_IN_THE_REPOSITORY = {"docker/.env", "app/migrations"}


def test_the_settings_page_is_current() -> None:
    made = settings_page.page()
    assert settings_page.PAGE.read_text() == made, "run `python -m docs.settings_page`"


def test_the_readmes_table_of_gpu_memory_is_current() -> None:
    text = README.read_text()
    assert text == memory_table.with_table(text), "run `python -m docs.memory_table`"


def test_the_readme_is_short() -> None:
    assert len(README.read_text().split()) <= MAX_WORDS


def test_the_architecture_page_lists_every_folder_of_the_code() -> None:
    listed = re.findall(r"(?m)^((?:app|worker)/\S*)", (ROOT / "docs" / "architecture.md").read_text())
    assert len(listed) == len(set(listed))
    assert set(listed) == {f"{folder.relative_to(ROOT).as_posix()}/" for folder in _folders()}


def test_the_index_links_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    linked = {index.parent / link for link in re.findall(r"\]\(([^)#]+\.md)", index.read_text())}
    assert linked == set(PAGES) - {README, index}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    named = re.findall(
        r"`((?:app|worker|tests|docs|docker|examples|benchmarks|migrations|\.ci)/[\w./-]+)`", text
    )
    assert [name for name in set(named) - NOT_IN_THE_REPOSITORY if not (ROOT / name).exists()] == []
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if ":" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_into_a_page_meets_a_heading(page: Path) -> None:
    for name, anchor in re.findall(r"\]\(([^)#:\s]*)#([^)\s]+)\)", page.read_text()):
        target = page.parent / name if name else page
        assert anchor in _anchors(target.read_text()), f"{name}#{anchor}"


def _folders() -> list[Path]:
    """Every folder of the code with a file of its own."""
    return [
        folder
        for top in ("app", "worker")
        for folder in [ROOT / top, *(ROOT / top).rglob("*")]
        if folder.name != "__pycache__"
        and folder.is_dir()
        and any(path.is_file() for path in folder.iterdir())
    ]


def _anchors(markdown: str) -> set[str]:
    """The headings as GitHub turns them into anchors."""
    headings = re.findall(r"(?m)^#+ (.*)", markdown)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
