"""Short batches on a GPU: the decoder's forward and backward pass, each launched whole as a CUDA graph.

A pass over a thousand tokens is five thousand kernels, and Python takes longer to launch them than the GPU to
run them. A graph is recorded for one shape, so rows are joined and padded to one of few sizes; a size is
recorded when it comes for the second time. All graphs share one pool of memory, since only one of them has a
pass under way. The split into two graphs with an autograd function around them is that of PyTorch's
`make_graphed_callables`; here the loss stays outside, and gradients go on through autograd.

T: tokens of the batch. S: tokens of the size it is padded to. N: rows. H: width of a hidden state.
"""

import gc
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

from worker.planning.optimizations import MOST_TOKENS
from worker.training import memory

_INPUTS = {"input_ids", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
_SPARE_BYTES = 2 << 30

Work = Callable[[], None]


@contextmanager
def own_stream() -> Iterator[None]:
    """Within it everything runs on another stream than the default one, which graphs can't be recorded on.

    Autograd remembers the stream that a parameter's gradient was first added up on; a graph that is recorded
    on another one fails where that is the default stream. So passes that are not recorded run here, too.
    """
    gc.collect()  # what is left of earlier passes
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    with torch.cuda.stream(torch.cuda.Stream()):
        try:
            yield
        finally:
            torch.cuda.synchronize()


class Recorder(Protocol):
    """Makes something that can be repeated of work on fixed memory, and tells what memory is left."""

    def record(self, work: Work) -> Work:
        """Do the work once, or only record it; the answer repeats it."""

    def has_room(self, kept_bytes: int) -> bool:
        """Whether a recording whose passes keep so much can be afforded."""


class CudaRecorder:
    """CUDA graphs in one pool. The present stream must be one of its own: `own_stream`."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.current_stream()
        self._largest = 0

    def record(self, work: Work) -> Work:
        """Record a graph."""
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process may allocate meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay

    def has_room(self, kept_bytes: int) -> bool:
        """Whether it fits beside the largest pass that there was."""
        self._largest = max(self._largest, kept_bytes)
        return memory.free_beside_peak() >= self._largest + _SPARE_BYTES


@dataclass(frozen=True)
class Size:
    """What a graph is recorded for."""

    tokens: int
    rows: int
    is_training: bool

    @classmethod
    def of(cls, tokens: int, rows: int, is_training: bool) -> "Size":
        """The smallest that the batch fits in: tokens in steps of 128, as products are tiled, later 256."""
        step = 128 if tokens <= MOST_TOKENS // 2 else 256
        return cls(-(-tokens // step) * step, 1 << (rows - 1).bit_length(), is_training)


class Recording:
    """Both passes over one size, on memory that stays."""

    def __init__(self, forward: Callable[..., Any], parameters: Sequence[nn.Parameter], size: Size) -> None:
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

    def record(self, recorder: Recorder) -> bool:
        """Record both passes after a rehearsal, which compiles what is compiled; False: no room."""
        is_cuda = self._ids_1S.is_cuda
        before = torch.cuda.memory_allocated() if is_cuda else 0
        self._pass_forward()
        assert self._hidden_1SH is not None
        kept = torch.cuda.memory_allocated() - before if is_cuda else 0
        self._grad_1SH = torch.zeros_like(self._hidden_1SH)
        self._pass_backward()
        self._hidden_1SH, self._grads = None, []
        if not recorder.has_room(kept):
            return False
        self._replay_forward = recorder.record(self._pass_forward)
        self._replay_backward = recorder.record(self._pass_backward)
        return True

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        """The hidden states [1, T, H] of a batch; they stay until the next forward pass."""
        tokens, starts = batch["input_ids"].shape[1], batch["cu_seq_lens_q"]
        padding = (0, self._size.tokens - tokens)
        self._ids_1S.copy_(functional.pad(batch["input_ids"], padding))
        self._positions_1S.copy_(functional.pad(batch["position_ids"], padding))
        # Padding is one row more; rows that are not there begin and end where it does.
        self._starts.copy_(
            functional.pad(starts, (0, len(self._starts) - len(starts)), value=self._size.tokens)
        )
        assert self._replay_forward is not None
        self._replay_forward()
        assert self._hidden_1SH is not None
        return self._hidden_1SH.detach()[:, :tokens]

    def backward(self, grad_1TH: torch.Tensor) -> list[torch.Tensor | None]:
        """Gradients of the parameters, in new memory."""
        assert self._grad_1SH is not None
        assert self._replay_backward is not None
        tokens = grad_1TH.shape[1]
        self._grad_1SH[:, :tokens].copy_(grad_1TH)
        self._grad_1SH[:, tokens:].zero_()
        self._replay_backward()
        there = [grad for grad in self._grads if grad is not None]
        copies = iter([torch.empty_like(grad) for grad in there])
        answer = [None if grad is None else next(copies) for grad in self._grads]
        torch._foreach_copy_([copy for copy in answer if copy is not None], there)
        return answer

    def _pass_forward(self) -> None:
        device = self._ids_1S.device.type
        dtype = torch.get_autocast_dtype(device)
        # A cast that is kept for later would be kept in the graph's memory.
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
    """Stands in for a decoder's forward pass where a batch is short."""

    def __init__(self, model: PeftModel, recorder: Recorder | None = None) -> None:
        # TRL calls the decoder by this name, and the output layer apart.
        self._decoder: nn.Module = model.get_base_model().base_model
        self._plain: Callable[..., Any] = self._decoder.forward
        self._parameters = [weight for weight in self._decoder.parameters() if weight.requires_grad]
        self._recorder: Recorder | None = recorder or CudaRecorder()
        self._seen: Counter[Size] = Counter()
        self._recordings: dict[Size, Recording] = {}
        self._has_recorded = False
        vars(self._decoder)["forward"] = self._forward

    @property
    def recordings(self) -> int:
        """How many sizes are recorded."""
        return len(self._recordings)

    def remove(self) -> None:
        """Leave the decoder as it was."""
        vars(self._decoder).pop("forward", None)
        self.release()

    def refresh(self) -> None:
        """Record anew: the graphs read memory that may not be there any more."""
        self._recordings.clear()

    def release(self) -> bool:
        """Give the graphs' memory back, and record no more; whether there was any."""
        had_any = bool(self._recordings)
        self._recordings.clear()
        self._recorder = None
        return had_any

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        batch = {name: value for name, value in kwargs.items() if value is not None and name != "use_cache"}
        recording = None
        if not args and batch.keys() == _INPUTS and torch.is_grad_enabled():
            recording = self._find(batch)
        if recording is None:
            return self._plain(*args, **kwargs)
        hidden_1TH = _Replay.apply(recording, batch, *self._parameters)
        return BaseModelOutputWithPast(last_hidden_state=hidden_1TH)

    def _find(self, batch: dict[str, Any]) -> Recording | None:
        """The recording for a batch, made when its size comes for the second time."""
        size = Size.of(batch["input_ids"].shape[1], len(batch["cu_seq_lens_q"]) - 1, self._decoder.training)
        if size in self._recordings or size.tokens > MOST_TOKENS:
            return self._recordings.get(size)
        self._seen[size] += 1
        if self._recorder is None or self._seen[size] < 2:
            return None
        recording = Recording(self._plain, self._parameters, size)
        if not self._record(recording, self._recorder):
            self._recorder = None
            return None
        self._recordings[size] = recording
        self._has_recorded = True
        return recording

    def _record(self, recording: Recording, recorder: Recorder) -> bool:
        try:
            return recording.record(recorder)
        except RuntimeError:
            if not self._has_recorded:
                raise  # the trial of graphs wants to know
            # The model may do something in training that can't be recorded; it goes on as before.
            traceback.print_exc()
            return False


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, recording: Recording, batch: dict[str, Any], *parameters: torch.Tensor
    ) -> torch.Tensor:
        ctx.recording = recording
        return recording.forward(batch)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_1TH: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, None, *ctx.recording.backward(grad_1TH)
