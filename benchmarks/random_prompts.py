"""Distinct random prompts of benchmarks. Imports no library."""

import random


def prompts(count: int, length: int, vocabulary_size: int) -> list[list[int]]:
    """Random token ids: no two prompts have the same beginning."""
    draw = random.Random(0)
    return [[draw.randrange(3, vocabulary_size) for _ in range(length)] for _ in range(count)]
