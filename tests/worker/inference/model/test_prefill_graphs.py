import pytest
import torch

from worker.inference.model.attention import Chunk, prompt_tiles
from worker.inference.model.forward import PassContext
from worker.inference.model.prefill import SIZES, TOKENS_PER_STEP, PrefillForward, tile_count
from worker.inference.model.runner import MAX_ROWS
from worker.inference.model.step_graphs import StepGraphs


def test_every_step_that_reads_prompts_fits_a_graph():
    assert max(SIZES) == TOKENS_PER_STEP["cuda"]


@pytest.mark.parametrize(
    ("count", "more", "has_room"),
    [(63, 1, True), (64, 1, False), (1020, 4, True), (1020, 5, False), (1535, 1, True), (1536, 1, False)],
)
def test_more_tokens_are_read_where_a_captured_pass_computes_as_many(count, more, has_room):
    parts = {"forward": None, "cache": None, "block_tables_RP": torch.zeros(2, 1), "slots": None}
    prefill = PrefillForward(PassContext(**parts, uses_kernels=False, uses_graphs=False))
    assert prefill.has_room(count, more)

    prefill._graphs = StepGraphs(lambda size: torch.zeros(size, 1), SIZES, new_pool=object)

    assert prefill.has_room(count, more) == has_room


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tokens_per_chunk", [16, 65, 127, 2048])
def test_prompts_of_a_step_fit_the_tiles_of_their_graph(size, tokens_per_chunk):
    count = max(1, min(size // tokens_per_chunk, MAX_ROWS["cuda"]))
    chunks = [Chunk(row, 0, min(size, tokens_per_chunk)) for row in range(count)]

    assert len(prompt_tiles(chunks)) <= tile_count(size)
