"""Clients that must not notice what others do: they ask all the time, and always get the same answer."""

import threading
from types import TracebackType
from typing import Any, Self

import httpx

_TIMEOUT_SECONDS = 60
_FEWEST_ANSWERS = 5


class Bystanders:
    """A context manager: a thread for each path. At its end every answer must have been the first one.

    Call `wait_for_answers` where a hostile client is at work: each of them has been answered meanwhile.
    """

    def __init__(self, base_url: str, *paths: str) -> None:
        self._base_url = base_url
        self._paths = paths
        self._is_over = threading.Event()
        self._answered = threading.Condition()
        self._counts = dict.fromkeys(paths, 0)
        self.complaints: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(path,)) for path in paths]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.wait_for_answers(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        if error is None:
            assert not self.complaints, self.complaints[:5]

    def wait_for_answers(self, count: int = _FEWEST_ANSWERS) -> None:
        """Wait until each bystander has had so many more answers."""
        with self._answered:
            wanted = {path: found + count for path, found in self._counts.items()}
            is_answered = self._answered.wait_for(
                lambda: self.complaints or all(self._counts[path] >= wanted[path] for path in self._paths),
                _TIMEOUT_SECONDS,
            )
        assert is_answered, f"not answered within {_TIMEOUT_SECONDS} s: {self._counts}"
        assert not self.complaints, self.complaints[:5]

    def _ask(self, path: str) -> None:
        first: Any = None
        # A new connection each time, as `curl` makes one.
        while not self._is_over.is_set():
            try:
                response = httpx.get(f"{self._base_url}{path}", timeout=_TIMEOUT_SECONDS, trust_env=False)
                found = response.status_code, response.text
            except httpx.HTTPError as error:
                found = 0, repr(error)
            first = first or found
            with self._answered:
                if found != first or found[0] != 200:
                    self.complaints.append(f"{path}: {found}, at first {first}")
                self._counts[path] += 1
                self._answered.notify_all()
