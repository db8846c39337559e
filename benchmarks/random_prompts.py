"""Distinct random prompts of benchmarks. Imports no library."""

import random


def prompts(count: int, length: int, vocabulary_size: int, *, seed: int = 0) -> list[list[int]]:
    """Random token ids: no two prompts have the same beginning, nor one with that of another seed.

    Engines keep what they have computed of a prompt, so each line of a table needs a seed of its own.
    """
    draw = random.Random(seed)
    return [[draw.randrange(3, vocabulary_size) for _ in range(length)] for _ in range(count)]
