"""Writes tool-calls.jsonl: conversations in which the assistant of a harbour office calls functions.

Run it as `python -m examples.tool_calls`. Each row lists two or three of six functions, so that a model
learns to choose by what they do, and not by what it saw most often.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_name("tool-calls.jsonl")
ROW_COUNT = 144
WORDS: dict[str, list[Any]] = {
    "place": [
        "north pier",
        "south pier",
        "east quay",
        "old harbour",
        "lighthouse",
        "ferry dock",
        "west basin",
    ],
    "boat": ["Marlin", "Petrel", "Sea Otter", "Albatross", "Kittiwake", "Blue Heron", "Puffin", "Moonfish"],
    "day": ["today", "tomorrow", "Friday", "Sunday"],
    "nights": [2, 3, 4, 5, 7],
    "fault": ["crane", "lamp", "water tap", "ladder", "power socket"],
}


@dataclass(frozen=True)
class Function:
    """A function, questions that it is for, and what it returns with the answer made of it."""

    description: str
    arguments: tuple[str, ...]
    questions: tuple[str, ...]
    results: tuple[tuple[Any, str], ...]


FUNCTIONS = {
    "get_tide": Function(
        "Height of the tide at a place",
        ("place",),
        (
            "How high is the water at the {place}?",
            "What is the tide at the {place}?",
            "Is it low tide at the {place}?",
            "I draw two metres. Is there enough water at the {place}?",
            "Tell me the water level at the {place}, please.",
            "Has the tide come in at the {place} yet?",
        ),
        (
            ({"metres": 1.2, "trend": "rising"}, "The water at the {place} is 1.2 m high, and rising."),
            ({"metres": 0.4, "trend": "falling"}, "It is low at the {place}: 0.4 m, and still falling."),
            ({"metres": 3.1, "trend": "rising"}, "The tide at the {place} is at 3.1 m."),
        ),
    ),
    "get_wind": Function(
        "Speed and direction of the wind at a place",
        ("place",),
        (
            "How strong is the wind at the {place}?",
            "Is it windy at the {place}?",
            "Where does the wind come from at the {place}?",
            "Can I put up my sails at the {place}, or does it blow too hard?",
            "What does the wind do at the {place}?",
            "Are there gusts at the {place}?",
        ),
        (
            ({"knots": 14, "from": "west"}, "The wind at the {place} comes from the west, with 14 knots."),
            ({"knots": 3, "from": "north"}, "There are only 3 knots from the north at the {place}."),
            ({"knots": 31, "from": "south"}, "It blows hard at the {place}: 31 knots from the south."),
        ),
    ),
    "find_boat": Function(
        "Where a boat lies",
        ("boat",),
        (
            "Where is the {boat}?",
            "Which berth is the {boat} in?",
            "Has the {boat} come in?",
            "I am looking for the {boat}.",
            "My sister is on the {boat}. Where can I find her?",
            "Is the {boat} still at sea?",
        ),
        (
            ({"berth": 12}, "The {boat} lies in berth 12."),
            ({"berth": None, "status": "at sea"}, "The {boat} is at sea."),
            ({"berth": 3}, "You find the {boat} in berth 3."),
        ),
    ),
    "book_berth": Function(
        "Reserve a berth for a boat",
        ("boat", "day", "nights"),
        (
            "Reserve a berth for the {boat} from {day} for {nights} nights.",
            "I need a place for the {boat}, {nights} nights from {day}.",
            "The {boat} arrives {day} and stays {nights} nights. Book it in.",
            "Is there a berth for the {boat} for {nights} nights, beginning {day}?",
            "We come with the {boat} {day}. Please hold a berth for {nights} nights.",
            "{nights} nights for the {boat}, please, from {day}.",
        ),
        (
            ({"berth": 7}, "The {boat} has berth 7 from {day}, for {nights} nights."),
            ({"error": "full"}, "I am sorry, the harbour is full from {day}."),
            ({"berth": 21}, "Done: berth 21 is reserved for the {boat}."),
        ),
    ),
    "get_ferry": Function(
        "Departure of the next ferry to a place",
        ("place",),
        (
            "When does the next ferry leave for the {place}?",
            "I want to go to the {place} by ferry.",
            "When is the next boat to the {place}?",
            "How do I get across to the {place}?",
            "Did I miss the ferry to the {place}?",
            "What time do you sail to the {place}?",
        ),
        (
            ({"departure": "16:40"}, "The next ferry to the {place} leaves at 16:40."),
            ({"departure": None}, "There are no more ferries to the {place} today."),
            ({"departure": "09:15"}, "You can take the ferry to the {place} at 09:15."),
        ),
    ),
    "report_fault": Function(
        "Report to the harbour office that something is broken",
        ("place", "fault"),
        (
            "The {fault} at the {place} is broken.",
            "Nobody can use the {fault} at the {place}.",
            "Please repair the {fault} at the {place}.",
            "The {fault} at the {place} does not work.",
            "Somebody has damaged the {fault} at the {place}.",
            "Send someone to look at the {fault} at the {place}.",
        ),
        (
            ({"ticket": 31}, "I have reported the {fault} at the {place}. Your ticket is number 31."),
            ({"ticket": 18, "known": True}, "The office knows of the {fault} already: ticket 18."),
            ({"ticket": 44}, "Thank you, the {fault} will be looked at. The ticket is number 44."),
        ),
    ),
}
TALK = (
    ("Hello!", "Hello! I can look up tides, wind, boats and ferries."),
    ("Thank you.", "You are welcome. Fair winds!"),
    ("Who are you?", "I am the assistant of the harbour office."),
    ("What is a berth?", "A berth is the place where a boat lies."),
    ("What is a knot?", "A knot is one nautical mile an hour, about 1.85 km/h."),
    ("Good night!", "Good night, and sleep well on board."),
)


def make_rows() -> Iterator[dict[str, Any]]:
    """Yield the rows: most with one call, a third of these with its result; some with two calls, or none."""
    chance = random.Random(7)
    for number in range(ROW_COUNT):
        name = list(FUNCTIONS)[number % len(FUNCTIONS)]
        others = chance.sample([one for one in FUNCTIONS if one != name], chance.choice([1, 1, 2]))
        words = {kind: chance.choice(values) for kind, values in WORDS.items()}
        if number % 12 == 11:
            question, answer = chance.choice(TALK)
            turns = [_user(question), {"role": "assistant", "content": answer}]
        elif number % 12 == 4:
            called = [name, others[0]]
            turns = [_user(" ".join(_ask(one, words, chance) for one in called)), _call(called, words)]
        else:
            turns = [_user(_ask(name, words, chance)), _call([name], words)]
            if chance.random() < 1 / 3:
                turns += _result_and_answer(name, words, chance)
        listed = sorted([name, *others], key=lambda _one: chance.random())
        yield {"messages": turns, "tools": [describe(one) for one in listed]}


def describe(name: str) -> dict[str, Any]:
    """A function as requests and rows list it. All arguments are required."""
    function = FUNCTIONS[name]
    schema = {
        "type": "object",
        "properties": {
            argument: {"type": "integer" if argument == "nights" else "string"}
            for argument in function.arguments
        },
        "required": list(function.arguments),
    }
    return {
        "type": "function",
        "function": {"name": name, "description": function.description, "parameters": schema},
    }


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _ask(name: str, words: dict[str, Any], chance: random.Random) -> str:
    return chance.choice(FUNCTIONS[name].questions).format(**words)


def _call(names: list[str], words: dict[str, Any]) -> dict[str, Any]:
    """The assistant's turn that calls functions with what the question says."""
    calls = [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {
                "name": name,
                "arguments": json.dumps({key: words[key] for key in FUNCTIONS[name].arguments}),
            },
        }
        for number, name in enumerate(names, start=1)
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def _result_and_answer(name: str, words: dict[str, Any], chance: random.Random) -> list[dict[str, Any]]:
    result, answer = chance.choice(FUNCTIONS[name].results)
    return [
        {"role": "tool", "tool_call_id": "call_1", "content": json.dumps(result)},
        {"role": "assistant", "content": answer.format(**words)},
    ]


if __name__ == "__main__":
    TARGET.write_text("".join(json.dumps(row) + "\n" for row in make_rows()))
