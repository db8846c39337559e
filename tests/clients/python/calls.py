"""The calls of one client, and a report of each: a line of JSON on the standard output.

The scripts of this folder run in environments that hold one client and neither pytest nor this project. All
they know of the service are the variables `SERVICE_URL` and `SERVICE_MODEL`. Each call asserts what a user of
that client would rely on.
"""

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Literal

URL = os.environ["SERVICE_URL"]  # with /v1
MODEL = os.environ["SERVICE_MODEL"]
KEY = "none"
QUESTION = "What is the weather in Oslo, and how many people live there?"
# What the model was trained to say in the end, after a call of each function.
ANSWER = "It rains in Oslo, where 700000 people live."
# More tokens than any model of these tests reads.
TOO_LONG = "word " * 20_000

CityName = Literal["Oslo", "Lima", "Kyoto"]
CITIES = ("Oslo", "Lima", "Kyoto")

Call = Callable[[], None]
_calls: list[Call] = []


def call(function: Call) -> Call:
    """Register a call by the name of its function."""
    _calls.append(function)
    return function


def run_calls() -> None:
    """Make all registered calls in their order and report each. An error ends its own call only."""
    for function in _calls:
        began, error = time.monotonic(), None
        try:
            # What clients print is no part of the report.
            with contextlib.redirect_stdout(sys.stderr):
                function()
        except BaseException:
            error = traceback.format_exc()
        seconds = round(time.monotonic() - began, 2)
        print(json.dumps({"call": function.__name__, "seconds": seconds, "error": error}), flush=True)


class NoError(Exception):
    """A call that must fail did not."""


class Toolbox:
    """Two functions for models to call, and the names of those that were called."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def get_weather(self, city: CityName) -> str:
        """Get the weather of a city."""
        self._note("get_weather", city)
        return f"It rains in {city}."

    def get_population(self, city: CityName) -> str:
        """Get how many people live in a city."""
        self._note("get_population", city)
        return "700000"

    def check(self, answer: str) -> None:
        """Both functions were called, and the answer is that of the model's training."""
        assert self.called == ["get_weather", "get_population"], self.called
        assert answer == ANSWER, answer

    def _note(self, name: str, city: str) -> None:
        assert city in CITIES, city
        self.called.append(name)
