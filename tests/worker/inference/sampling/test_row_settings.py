"""Settings of rows that are written late: whatever happens before, each row has its own."""

import random

import torch

from app.core.engine.sampling import Sampling
from worker.inference.sampling.row_settings import RowSettings


def test_rows_have_their_settings_whenever_they_are_written():
    rng = random.Random(0)
    rows = RowSettings(4, torch.device("cpu"))
    expected: dict[int, int] = {}
    for seed in range(1, 300):
        row = rng.randrange(4)
        rows.set(row, Sampling(temperature=0.5, top_k=seed), seed)
        expected[row] = seed
        if rng.random() < 0.3:
            rows.write()
        if len(expected) > 1 and rng.random() < 0.5:
            target, source = sorted(rng.sample(list(expected), 2))
            rows.move(source, target)
            expected[target] = expected.pop(source)
        if rng.random() < 0.3:
            rows.write()
            here = rows.at(torch.tensor(list(expected)))
            assert here.seed_B.tolist() == here.top_k_B.tolist() == list(expected.values())
