"""The child of a made-up kind of work: it counts to three, and its script says how it ends."""

import os
import sys
import threading
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from worker.processes.child import ParentLink
from worker.processes.reports import ProcessMessage


class CountRequest(ProcessMessage):
    script: str
    folder: Path


class Counting(ProcessMessage):
    type: Literal["counting"] = "counting"
    reached: int


class Counted(ProcessMessage):
    type: Literal["counted"] = "counted"
    file: Path


class CountFailed(ProcessMessage):
    type: Literal["failed"] = "failed"
    message: str


CountReport = Annotated[Counting | Counted | CountFailed, Field(discriminator="type")]
count_report_adapter: TypeAdapter[CountReport] = TypeAdapter(CountReport)


def main() -> None:
    link = ParentLink(int(sys.argv[1]))
    request = link.read_request(CountRequest)
    asked_to_stop = threading.Event()
    link.watch(on_stop=asked_to_stop.set)
    for number in (1, 2, 3):
        link.send(Counting(reached=number))
    if request.script in ("waits", "ignores-stop"):
        asked_to_stop.wait()
    if request.script == "ignores-stop":
        threading.Event().wait()
    elif request.script == "fails":
        link.send(CountFailed(message="There is no four."))
    elif request.script == "fails-with-nul":
        link.send(CountFailed(message="There is no\0 four."))
    elif request.script == "dies":
        sys.exit("about to die")
    elif request.script == "talks-nonsense":
        os.write(int(sys.argv[1]), b"four\n")
        threading.Event().wait()
    elif request.script == "finishes":
        file = request.folder / "three"
        file.write_bytes(b"3")
        link.send(Counted(file=file))


if __name__ == "__main__":
    main()
