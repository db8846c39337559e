"""The table of clients in docs/openai.md; `python -m tests.clients.table` runs them and writes it anew."""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.clients.clients import CLIENTS, COLUMNS
from tests.clients.environments import ROOT
from tests.clients.runs import Outcome, running_clients

PAGE = ROOT / "docs" / "openai.md"
BEGIN = "<!-- begin: python -m tests.clients.table -->\n"
END = "<!-- end -->\n"


def render(outcomes: Mapping[str, list[Outcome]]) -> str:
    """The table: yes where all calls of a kind did what the client's users expect, no where one did not."""
    head = ["Client", "Version", "Set", *COLUMNS.values()]
    rows = [
        [client.name, client.version, client.address, *_cells(outcomes[client.name])] for client in CLIENTS
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def written() -> str:
    """The table as it is in the documentation."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0]


def write(table: str) -> None:
    """Put the table into the documentation."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table + END + rest.partition(END)[2])


def _cells(found: list[Outcome]) -> list[str]:
    return [
        "no" if errors.count(None) < len(errors) else "yes" if errors else "-"
        for errors in ([one.error for one in found if one.column == column] for column in COLUMNS)
    ]


def main() -> None:
    """Run all clients, write the table, and print what failed."""
    with tempfile.TemporaryDirectory() as folder, running_clients(Path(folder)) as running:
        outcomes = {name: future.result() for name, future in running.items()}
    write(render(outcomes))
    failed = [(name, one) for name, found in outcomes.items() for one in found if one.error]
    for name, one in failed:
        print(f"{name}, {one.call}:\n{one.error}", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
