"""W&B's transaction log, the file of a run that `wandb sync` uploads, read while wandb writes it.

It is a log of LevelDB's format after a header of 7 bytes: blocks of 32 KiB, of records with a header each
(https://github.com/google/leveldb/blob/main/doc/log_format.md); a record holds a protocol buffer.
"""

from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

_FILE_HEADER, _BLOCK, _RECORD_HEADER = 7, 32768, 7
_WHOLE, _LAST = 1, 4


class TransactionLog:
    """What a file has, each record once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = _FILE_HEADER
        self._parts = b""

    def read_new(self) -> Iterator[Record]:
        """The records that were written since the last call, as far as they are whole."""
        with self._path.open("rb") as file:
            start = self._place
            file.seek(start)
            content = file.read()
        while True:
            left = _BLOCK - self._place % _BLOCK
            if left < _RECORD_HEADER:
                self._place += left
            begin = self._place - start + _RECORD_HEADER
            header = content[begin - _RECORD_HEADER : begin]
            if len(header) < _RECORD_HEADER:
                return
            length, kind = int.from_bytes(header[4:6], "little"), header[6]
            if begin + length > len(content):
                return
            self._parts += content[begin : begin + length]
            self._place += _RECORD_HEADER + length
            if kind in (_WHOLE, _LAST):
                whole, self._parts = self._parts, b""
                yield Record.FromString(whole)
