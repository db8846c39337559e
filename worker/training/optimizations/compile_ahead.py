"""Compiles the kernels of attention in threads, while a job loads its base model.

They take most of the time that the first job of a shape needs to compile, most of it without Python's
interpreter. Where one can't be compiled, the optimization's trial fails, too, and says why.
"""

from concurrent.futures import ThreadPoolExecutor

from transformers import PreTrainedModel

from worker.decoder import reading
from worker.models.device import Device
from worker.planning.optimizations import OptimizationPlan


class CompileAhead:
    """Those that the explicit layers of a plan need, for a base model without weights."""

    def __init__(self, plan: OptimizationPlan, model: PreTrainedModel, device: Device) -> None:
        """Start to compile."""
        self._threads: ThreadPoolExecutor | None = None
        if not (plan.explicit_decoder and plan.varlen_kernels[0] == "Triton"):
            return
        from worker.kernels.varlen_attention import compilations  # needs Triton

        assert plan.fused_lora_dtype is not None
        try:
            kinds = reading.read_heads(model.base_model)
        except reading.Unsupported:
            return
        calls = [
            call
            for heads in kinds
            for call in compilations(
                heads.queries,
                heads.keys,
                heads.width,
                window=heads.window,
                dtype=plan.fused_lora_dtype,
                device=device.torch,
            )
        ]
        self._threads = ThreadPoolExecutor(len(calls), thread_name_prefix="compile")
        for call in calls:
            self._threads.submit(call)

    def wait(self) -> None:
        """Return when all are compiled or have failed."""
        if self._threads:
            self._threads.shutdown()
