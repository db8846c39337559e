"""Short batches, padded to a few sizes and repeated: here what is captured is computed again each time."""

import pytest
import torch
from peft import PeftModel

from tests.worker.training.optimizations.conftest import draw_rows, losses_and_gradients
from worker.decoder.operations import TorchOperations
from worker.training.batches import PaddingFreeCollator, make_dataset
from worker.training.loss import score
from worker.training.optimizations import decoder_graphs, varlen_attention
from worker.training.optimizations.decoder_graphs import GraphedDecoder, GraphSize, Work
from worker.training.optimizations.explicit_decoder import ExplicitDecoder
from worker.training.optimizations.lora_layers import LIBRARY_KERNELS


class Repeater:
    """Replays work by doing it again; counts the captures, up to `max_sizes` sizes."""

    def __init__(self, max_sizes: int = 100) -> None:
        self.sizes_left = max_sizes
        self.captured = 0
        self.fails = False
        self.watched = 0
        self.share = 1.0

    def capture(self, work: Work) -> Work:
        if self.fails:
            raise RuntimeError("operation failed during capture")
        self.captured += 1
        work()
        return torch.enable_grad()(work)

    def has_memory_for(self, pass_bytes: int) -> bool:
        self.sizes_left -= 1
        return self.sizes_left >= 0

    def launch_share(self, work: Work) -> float:
        self.watched += 1
        work()
        return self.share


def join(lengths: list[int], *, masked: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
    return PaddingFreeCollator()(list(make_dataset(draw_rows(lengths, masked=masked))))


@pytest.fixture
def joined_model(model: PeftModel) -> PeftModel:
    varlen_attention.register(varlen_attention.row_by_row)
    model.get_base_model().set_attn_implementation(varlen_attention.NAME)
    return model


def attach(model: PeftModel, capturer: Repeater) -> GraphedDecoder:
    """A decoder with graphs, which computes the batches of `losses_and_gradients`."""
    own = ExplicitDecoder(
        model, torch.float32, TorchOperations(), LIBRARY_KERNELS, varlen_attention.row_by_row
    )
    return GraphedDecoder(model, own, capturer)


def assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected) > 20
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_losses_and_gradients_are_those_of_the_batch_alone(joined_model: PeftModel) -> None:
    batches = [join([5, 2, 9, 3]), join([4, 40, 1]), join([128]), join([7, 2], masked=(0,)), join([3])]
    expected = [losses_and_gradients(joined_model, batch) for batch in batches]
    capturer = Repeater()
    graphed = attach(joined_model, capturer)

    rounds = [[losses_and_gradients(joined_model, batch, graphed) for batch in batches] for _ in range(3)]

    for found in rounds:
        for one, of_the_batch in zip(found, expected, strict=True):
            assert_equal(one, of_the_batch)
    # One size has four rows at most, three batches have one of their own; each is two graphs.
    assert capturer.captured == 2 * len({(128, 4), (128, 1), (128, 2)})


def test_gradients_of_several_batches_add_up(joined_model: PeftModel) -> None:
    batch, other = join([5, 2]), join([4, 30])
    parts = [losses_and_gradients(joined_model, one)[1:] for one in (batch, other)]
    graphed = attach(joined_model, Repeater())
    for one in (batch, batch):
        losses_and_gradients(joined_model, one, graphed)

    losses_and_gradients(joined_model, batch, graphed)
    kept = [weight.grad for weight in joined_model.parameters() if weight.grad is not None]
    before = [grad.clone() for grad in kept]
    losses_and_gradients(joined_model, other, graphed, adds=True)
    found = [weight.grad for weight in joined_model.parameters() if weight.grad is not None]

    assert_equal(before, parts[0])
    assert_equal(found, [left + right for left, right in zip(*parts, strict=True)])


def test_without_memory_and_after_release_it_computes_as_before(joined_model: PeftModel) -> None:
    batch, longer = join([5, 2]), join([140])
    expected = [losses_and_gradients(joined_model, one) for one in (batch, longer)]
    capturer = Repeater(max_sizes=1)
    graphed = attach(joined_model, capturer)
    for _ in range(3):
        for one, of_the_batch in zip((batch, longer), expected, strict=True):
            assert_equal(losses_and_gradients(joined_model, one, graphed), of_the_batch)
    assert capturer.captured == 2

    assert graphed.release()

    assert_equal(losses_and_gradients(joined_model, batch, graphed), expected[0])
    assert capturer.captured == 2
    assert not graphed.release()


def test_what_cannot_be_captured_later_is_computed_as_before(joined_model: PeftModel) -> None:
    batches = [join([5, 2]), join([140])]
    expected = [losses_and_gradients(joined_model, batch) for batch in batches]
    capturer = Repeater()
    graphed = attach(joined_model, capturer)
    for _ in range(2):
        losses_and_gradients(joined_model, batches[0], graphed)

    capturer.fails = True
    for _ in range(3):
        for batch, of_the_batch in zip(batches, expected, strict=True):
            assert_equal(losses_and_gradients(joined_model, batch, graphed), of_the_batch)

    assert capturer.captured == 2


def test_the_first_capture_says_why_it_fails(joined_model: PeftModel) -> None:
    capturer = Repeater()
    capturer.fails = True
    graphed = attach(joined_model, capturer)
    losses_and_gradients(joined_model, join([5, 2]), graphed)

    with pytest.raises(RuntimeError, match="capture"):
        losses_and_gradients(joined_model, join([5, 2]), graphed)


def test_an_evaluation_is_not_captured(joined_model: PeftModel) -> None:
    capturer = Repeater()
    graphed = attach(joined_model, capturer)
    batch = join([5, 2])

    with torch.no_grad():
        for _ in range(3):
            score(joined_model.get_base_model(), batch, graphed)

    assert capturer.captured == 0


@pytest.mark.parametrize(("share", "captured"), [(0.9, 2), (0.5, 0)], ids=["GPU waits", "GPU is busy"])
def test_long_batches_are_captured_where_the_gpu_waits(
    joined_model: PeftModel, share: float, captured: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_graphs, "MAX_GRAPH_TOKENS", 64)
    batches = [join([60, 20, 30]), join([100]), join([7] * 17), join([90, 3])]
    expected = [losses_and_gradients(joined_model, batch) for batch in batches]
    capturer = Repeater()
    capturer.share = share
    graphed = attach(joined_model, capturer)

    for batch, of_the_batch in zip(batches, expected, strict=True):
        assert_equal(losses_and_gradients(joined_model, batch, graphed), of_the_batch)

    # The first compiles, the second is watched; all of them are of one size.
    assert (capturer.watched, capturer.captured) == (1, captured)


@pytest.mark.parametrize(
    ("tokens", "rows", "expected"),
    [
        (1, 1, (128, 1)),
        (128, 3, (128, 4)),
        (129, 4, (256, 4)),
        (2048, 5, (2048, 8)),
        (2049, 8, (2304, 8)),
        (4096, 1, (4096, 1)),
        (8170, 40, (8192, 256)),
        (8190, 300, (8192, 512)),
    ],
)
def test_sizes(tokens: int, rows: int, expected: tuple[int, int]) -> None:
    assert GraphSize.of(tokens, rows, True) == GraphSize(*expected, True)
