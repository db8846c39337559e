import pytest

from worker.inference.model.attention import Chunk, prompt_tiles
from worker.inference.model.prefill import SIZES, TOKENS_PER_STEP, tile_count
from worker.inference.model.runner import MAX_ROWS


def test_every_step_that_reads_prompts_fits_a_graph():
    assert max(SIZES) == TOKENS_PER_STEP["cuda"]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tokens_per_chunk", [16, 65, 127, 2048])
def test_prompts_of_a_step_fit_the_tiles_of_their_graph(size, tokens_per_chunk):
    count = max(1, min(size // tokens_per_chunk, MAX_ROWS["cuda"]))
    chunks = [Chunk(row, 0, min(size, tokens_per_chunk)) for row in range(count)]

    assert len(prompt_tiles(chunks)) <= tile_count(size)
