"""Each client makes its usual calls, and the documentation says which."""

from collections.abc import Iterator

import pytest

from tests.clients import table
from tests.clients.clients import CLIENTS, Client
from tests.clients.runs import Outcomes, running_clients

# The first test waits for the stack and for the client's environment.
pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    with running_clients(tmp_path_factory.mktemp("clients")) as running:
        yield running


@pytest.mark.parametrize(
    ("client", "column"),
    [(client, column) for client in CLIENTS for column in client.columns],
    ids=[f"{client.key}-{column}" for client in CLIENTS for column in client.columns],
)
def test_a_client_does_what_its_users_expect(outcomes: Outcomes, client: Client, column: str) -> None:
    found = [one for one in outcomes[client.name].result() if one.column == column]

    assert found
    for one in found:
        assert one.error is None, f"{one.call}: {one.error}"


def test_all_calls_of_the_scripts_are_of_a_kind_that_is_named_for_the_client(outcomes: Outcomes) -> None:
    made = {client.name: {one.column for one in outcomes[client.name].result()} for client in CLIENTS}

    assert made == {client.name: set(client.columns) for client in CLIENTS}


def test_the_table_in_the_documentation_says_what_was_found(outcomes: Outcomes) -> None:
    assert table.written() == table.render({name: found.result() for name, found in outcomes.items()})
