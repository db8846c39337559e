"""A child process that waits for its request, sends it back, and prints its progress."""

import sys

from worker.processes.child import ParentLink
from worker.processes.reports import Advanced, Waiting


def main() -> None:
    print("imported", flush=True)
    link = ParentLink(int(sys.argv[1]))
    link.send(Waiting())
    request = link.read_request(Advanced)
    print("began", flush=True)
    link.send(request)


if __name__ == "__main__":
    main()
