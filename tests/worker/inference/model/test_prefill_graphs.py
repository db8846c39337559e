import pytest
import torch

from worker.inference.batching.model_batch import Capacity
from worker.inference.model.attention import Chunk, prompt_tiles
from worker.inference.model.passes.forward import PassContext
from worker.inference.model.passes.prefill import SIZES, TOKENS_PER_STEP, PrefillForward, tile_count
from worker.inference.model.rows import Rows
from worker.inference.model.runner import MAX_ROWS
from worker.inference.model.step_graphs import StepGraphs


def make_rows() -> Rows:
    capacity = Capacity(max_rows=2, block_count=2, context_length=16)
    return Rows(capacity, 3, torch.device("cpu"), uses_kernels=False)


def test_every_step_that_reads_prompts_fits_a_graph():
    assert max(SIZES) == TOKENS_PER_STEP["cuda"]


@pytest.mark.parametrize(
    ("count", "more", "has_room"),
    [
        (63, 1, True),
        (64, 1, True),
        (64, 192, True),
        (64, 193, False),
        (256, 128, True),
        (256, 129, False),
        (1024, 1, False),
    ],
)
def test_more_tokens_are_read_where_a_captured_pass_is_not_much_larger(count, more, has_room):
    parts = {"forward": None, "cache": None, "rows": make_rows(), "slots": None}
    prefill = PrefillForward(PassContext(**parts, uses_kernels=False, uses_graphs=False))
    assert prefill.has_room(count, more)

    prefill._graphs = StepGraphs(lambda size: torch.zeros(size, 1), SIZES, new_pool=object)

    assert prefill.has_room(count, more) == has_room


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tokens_per_chunk", [16, 65, 127, 2048])
def test_prompts_of_a_step_fit_the_tiles_of_their_graph(size, tokens_per_chunk):
    count = max(1, min(size // tokens_per_chunk, MAX_ROWS["cuda"]))
    chunks = [Chunk(row, 0, min(size, tokens_per_chunk)) for row in range(count)]

    assert len(prompt_tiles(chunks)) <= tile_count(size, MAX_ROWS["cuda"])
