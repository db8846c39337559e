"""The decoder's forward and backward pass on a GPU, each launched whole as a CUDA graph.

A pass over a thousand tokens is thousands of kernels, and Python takes longer to launch them than the GPU to
run them. A graph is captured for one shape, so rows are joined and padded to one of few sizes; where rows
begin is data. A size is captured when it occurs for the second time; one of more than MAX_GRAPH_TOKENS only
where its first pass was launched so slowly that the GPU had to wait, as on a host with a slow CPU. All graphs
share one pool of memory, since only one of them has a pass under way. The split into two graphs with an
autograd function around them is that of PyTorch's `make_graphed_callables`; here the loss is computed outside
of them, and gradients flow on through autograd.

T: tokens of the batch. S: tokens of the size it is padded to. N: rows. H: width of a hidden state.
"""

import gc
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPast

from worker.models.cuda_graphs import GraphPool
from worker.planning.optimizations import MAX_GRAPH_TOKENS
from worker.training import memory
from worker.training.loss import Decoder

_INPUTS = {"input_ids", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
_SPARE_BYTES = 2 << 30
_TOKENS_OF_A_PACKED_ROW = 32
# Share of a forward pass's time from which its launches are what takes it.
_LAUNCH_BOUND = 0.8

Work = Callable[[], None]


@contextmanager
def own_stream() -> Iterator[None]:
    """Within this context all work runs on a new stream: graphs can't be captured on the default one.

    Autograd remembers the stream on which a parameter's gradient was first accumulated, and a graph that is
    captured on another stream fails where that was the default one. So all passes must run within this.
    """
    gc.collect()  # what is left of earlier passes
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    with torch.cuda.stream(torch.cuda.Stream()):
        try:
            yield
        finally:
            torch.cuda.synchronize()


class Capturer(Protocol):
    """Captures work on fixed memory to replay it, and checks whether memory for it is free."""

    def capture(self, work: Work) -> Work:
        """Capture the work; it may run meanwhile. Returns a function that replays it."""

    def has_memory_for(self, pass_bytes: int) -> bool:
        """Whether memory is free for graphs whose forward pass saves `pass_bytes` for the backward pass."""

    def launch_share(self, work: Work) -> float:
        """Do the work. Returns the share of its time that passed until all of it was launched."""


class CudaCapturer:
    """Captures CUDA graphs in one pool, on the present stream, which must be that of `own_stream`."""

    def __init__(self) -> None:
        self._pool = GraphPool(torch.cuda.current_stream())
        self._largest = 0

    def capture(self, work: Work) -> Work:
        """Capture a CUDA graph. Returns the function that replays it."""
        return self._pool.capture(work).replay

    def has_memory_for(self, pass_bytes: int) -> bool:
        """Whether the largest of these passes fits in addition to the peak of the process so far."""
        self._largest = max(self._largest, pass_bytes)
        return memory.free_bytes_at_peak() >= self._largest + _SPARE_BYTES

    def launch_share(self, work: Work) -> float:
        """Do the work while the host waits for the device, before and after it."""
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        launched = time.perf_counter()
        torch.cuda.synchronize()
        return (launched - began) / (time.perf_counter() - began)


@dataclass(frozen=True)
class GraphSize:
    """The shape of batch that a pair of graphs is captured for."""

    tokens: int
    rows: int
    is_training: bool

    @classmethod
    def of(cls, tokens: int, rows: int, is_training: bool) -> "GraphSize":
        """The smallest that holds a batch: tokens in steps of 128, as products are tiled, or of 256.

        Long batches, which are packed, are of one size, with as many rows as are likely in any of them.
        """
        step = 128 if tokens <= MAX_GRAPH_TOKENS // 2 else 256
        whole = -(-tokens // step) * step
        most = whole // _TOKENS_OF_A_PACKED_ROW if whole > MAX_GRAPH_TOKENS else 1
        return cls(whole, 1 << (max(rows, most) - 1).bit_length(), is_training)


class DecoderGraphs:
    """Forward and backward pass at one size, on memory that stays where it is."""

    def __init__(
        self, forward: Callable[..., Any], parameters: Sequence[nn.Parameter], size: GraphSize
    ) -> None:
        device, dtype = parameters[0].device, torch.int64
        self._forward = forward
        self._parameters = parameters
        self._size = size
        self._ids_1S = torch.zeros(1, size.tokens, device=device, dtype=dtype)
        self._positions_1S = torch.zeros(1, size.tokens, device=device, dtype=dtype)
        self._starts = torch.full((size.rows + 2,), size.tokens, device=device, dtype=torch.int32)
        self._starts[0] = 0
        self._hidden_1SH: torch.Tensor | None = None
        self._grad_1SH: torch.Tensor | None = None
        self._grads: list[torch.Tensor | None] = []
        self._replay_forward: Work | None = None
        self._replay_backward: Work | None = None

    def capture(self, capturer: Capturer) -> bool:
        """Run both passes, which compiles their kernels, then capture them; False where memory is lacking."""
        is_cuda = self._ids_1S.is_cuda
        before = torch.cuda.memory_allocated() if is_cuda else 0
        self._pass_forward()
        assert self._hidden_1SH is not None
        pass_bytes = torch.cuda.memory_allocated() - before if is_cuda else 0
        self._grad_1SH = torch.zeros_like(self._hidden_1SH)
        self._pass_backward()
        self._hidden_1SH, self._grads = None, []
        if not capturer.has_memory_for(pass_bytes):
            return False
        self._replay_forward = capturer.capture(self._pass_forward)
        self._replay_backward = capturer.capture(self._pass_backward)
        return True

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return the hidden states [1, T, H] of a batch, in memory that the next forward pass overwrites."""
        tokens, starts = batch["input_ids"].shape[1], batch["cu_seq_lens_q"]
        padding = (0, self._size.tokens - tokens)
        self._ids_1S.copy_(functional.pad(batch["input_ids"], padding))
        self._positions_1S.copy_(functional.pad(batch["position_ids"], padding))
        # Padding is one more row; rows that the batch does not have are empty, at the end.
        self._starts.copy_(
            functional.pad(starts, (0, len(self._starts) - len(starts)), value=self._size.tokens)
        )
        assert self._replay_forward is not None
        self._replay_forward()
        assert self._hidden_1SH is not None
        return self._hidden_1SH.detach()[:, :tokens]

    def backward(self, grad_1TH: torch.Tensor) -> list[torch.Tensor | None]:
        """Return the gradients of the parameters, in new memory."""
        assert self._grad_1SH is not None
        assert self._replay_backward is not None
        tokens = grad_1TH.shape[1]
        self._grad_1SH[:, :tokens].copy_(grad_1TH)
        self._grad_1SH[:, tokens:].zero_()
        self._replay_backward()
        grads = [grad for grad in self._grads if grad is not None]
        copies = [torch.empty_like(grad) for grad in grads]
        torch._foreach_copy_(copies, grads)
        remaining = iter(copies)
        return [None if grad is None else next(remaining) for grad in self._grads]

    def _pass_forward(self) -> None:
        device = self._ids_1S.device.type
        dtype = torch.get_autocast_dtype(device)
        # Autocast's cache would keep casts in the graph's memory.
        with torch.autocast(
            device, dtype=dtype, enabled=torch.is_autocast_enabled(device), cache_enabled=False
        ):
            output = self._forward(
                input_ids=self._ids_1S,
                position_ids=self._positions_1S,
                cu_seq_lens_q=self._starts,
                cu_seq_lens_k=self._starts,
                max_length_q=self._size.tokens,
                max_length_k=self._size.tokens,
                use_cache=False,
            )
        self._hidden_1SH = output.last_hidden_state

    def _pass_backward(self) -> None:
        assert self._hidden_1SH is not None
        self._grads = list(
            torch.autograd.grad(self._hidden_1SH, self._parameters, self._grad_1SH, allow_unused=True)
        )


class GraphedDecoder:
    """A decoder whose short batches go through captured graphs."""

    def __init__(self, model: PeftModel, decoder: Decoder | None, capturer: Capturer | None = None) -> None:
        """`decoder`: what is captured; None: the model's own."""
        self._own: nn.Module = model.get_base_model().base_model
        self._plain: Decoder = decoder or self._own
        self._parameters = [weight for weight in self._own.parameters() if weight.requires_grad]
        self._capturer: Capturer | None = capturer or CudaCapturer()
        self._seen: Counter[GraphSize] = Counter()
        self._graphs: dict[GraphSize, DecoderGraphs] = {}
        self._has_captured = False
        self._long_passes = 0
        self._launch_share: float | None = None

    @property
    def captured_count(self) -> int:
        """How many sizes are captured."""
        return len(self._graphs)

    def refresh(self) -> None:
        """Drop the graphs, which read memory that may have been freed; sizes are captured anew."""
        self._graphs.clear()

    def release(self) -> bool:
        """Free the graphs' memory, and capture no more. Returns whether there were any graphs."""
        had_any = bool(self._graphs)
        self._graphs.clear()
        self._capturer = None
        return had_any

    def __call__(self, **inputs: Any) -> Any:
        """As the decoder that is captured."""
        batch = {name: value for name, value in inputs.items() if value is not None and name != "use_cache"}
        graphs = None
        if batch.keys() == _INPUTS and torch.is_grad_enabled():
            graphs = self._find(batch)
        if graphs is None:
            return self._compute(inputs)
        hidden_1TH = _Replay.apply(graphs, batch, *self._parameters)
        return BaseModelOutputWithPast(last_hidden_state=hidden_1TH)

    def _compute(self, inputs: dict[str, Any]) -> Any:
        """Compute as before; the first pass of a long batch with compiled kernels is watched."""
        is_long = inputs["input_ids"].shape[1] > MAX_GRAPH_TOKENS
        if not (is_long and self._capturer and torch.is_grad_enabled() and self._launch_share is None):
            return self._plain(**inputs)
        self._long_passes += 1
        if self._long_passes < 2:
            return self._plain(**inputs)  # compiles kernels
        outputs: list[Any] = []
        self._launch_share = self._capturer.launch_share(lambda: outputs.append(self._plain(**inputs)))
        return outputs[0]

    def _waits_for_launches(self, size: GraphSize) -> bool:
        if size.tokens <= MAX_GRAPH_TOKENS:
            return True
        return self._launch_share is not None and self._launch_share >= _LAUNCH_BOUND

    def _find(self, batch: dict[str, Any]) -> DecoderGraphs | None:
        """The graphs for a batch, captured when its size occurs for the second time; None: there are none."""
        size = GraphSize.of(batch["input_ids"].shape[1], len(batch["cu_seq_lens_q"]) - 1, self._own.training)
        if size in self._graphs:
            return self._graphs[size]
        self._seen[size] += 1
        if self._capturer is None or self._seen[size] < 2 or not self._waits_for_launches(size):
            return None
        graphs = DecoderGraphs(self._plain, self._parameters, size)
        if not self._capture(graphs, self._capturer):
            self._capturer = None
            return None
        self._graphs[size] = graphs
        self._has_captured = True
        return graphs

    def _capture(self, graphs: DecoderGraphs, capturer: Capturer) -> bool:
        try:
            return graphs.capture(capturer)
        except RuntimeError:
            if not self._has_captured:
                raise  # the trial of this optimization catches it
            # The model may do something in training that can't be captured: such sizes run without graphs.
            traceback.print_exc()
            return False


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, graphs: DecoderGraphs, batch: dict[str, Any], *parameters: torch.Tensor
    ) -> torch.Tensor:
        ctx.graphs = graphs
        return graphs.forward(batch)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_1TH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, None, *ctx.graphs.backward(grad_1TH)
