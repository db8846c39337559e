"""The real API and worker of a module of tests."""

from collections.abc import Iterator

import pytest

from tests.dashboard.live_box.stack import Stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("box"))
    yield stack
    stack.box.close()
