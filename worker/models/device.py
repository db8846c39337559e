"""The devices of this machine, their memory and speed. `python -m worker.models.device` prints them as JSON.

The supervisor runs that command and does not import torch: a CUDA context of its own would hold GPU memory.
"""

import resource
import sys
import time

import psutil
import torch
from pydantic import BaseModel, Field, TypeAdapter

# Messages of RuntimeErrors from the CPU's allocator, cuBLAS, and CUDA outside PyTorch's allocator.
_NO_MEMORY = ("allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")

# The product that is timed: large enough to keep a GPU busy, and a few of them for the host to be ahead.
_GPU_PRODUCT_WIDTH, _CPU_PRODUCT_WIDTH = 8192, 1024
_PRODUCTS = 2
_PRODUCT_SECONDS = 0.15


class Device(BaseModel):
    """The device that trains and serves."""

    kind: str = Field(description="`cuda` or `cpu`.")
    name: str
    memory_bytes: int = Field(description="All of the device's memory.")
    supports_bf16: bool = Field(description="Whether it multiplies bfloat16 as fast as its other types.")
    torch_version: str
    index: int = Field(0, description="Its place among the devices that this process sees.")
    uuid: str | None = Field(
        None, description="The driver's id of a GPU, as `CUDA_VISIBLE_DEVICES` takes it; null on a CPU."
    )
    matrix_rate: float | None = Field(
        None,
        description="Floating-point operations a second of a large matrix product, in the type that jobs "
        "compute in; null: not measured.",
    )

    @property
    def is_cuda(self) -> bool:
        """Whether it is an NVIDIA GPU."""
        return self.kind == "cuda"

    @property
    def torch(self) -> torch.device:
        """The device in PyTorch's terms."""
        return torch.device("cuda", self.index) if self.is_cuda else torch.device("cpu")


def find_device() -> Device:
    """Return the first GPU that this process sees, or the CPU where there is none."""
    return find_devices()[0]


def find_devices() -> list[Device]:
    """Return all GPUs that this process sees, or the CPU where there is none."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        return [_describe_gpu(index) for index in range(count)]
    cpu = Device(
        kind="cpu",
        name=f"CPU, {torch.get_num_threads()} threads",
        memory_bytes=psutil.virtual_memory().total,
        supports_bf16=_cpu_multiplies_bf16(),
        torch_version=torch.__version__,
    )
    return [cpu]


def _describe_gpu(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    uuid = getattr(properties, "uuid", None)
    return Device(
        kind="cuda",
        name=properties.name,
        memory_bytes=properties.total_memory,
        # Turing emulates bfloat16 without tensor cores; it counts as not having it.
        supports_bf16=properties.major >= 8,
        torch_version=torch.__version__,
        index=index,
        uuid=f"GPU-{uuid}" if uuid else None,
    )


def measure_matrix_rate(device: Device) -> float | None:
    """Floating-point operations a second of the fastest of many large products; None where memory is short.

    It takes a fraction of a second. Another process that computes on the device meanwhile makes it less.
    """
    dtype, width = torch.float32, _CPU_PRODUCT_WIDTH
    if device.is_cuda:
        dtype, width = torch.bfloat16 if device.supports_bf16 else torch.float16, _GPU_PRODUCT_WIDTH
    try:
        x, y = (torch.ones(width, width, dtype=dtype, device=device.torch) for _ in range(2))
        products = torch.empty_like(x)
        _time_products(x, y, products, device)  # the first one loads the library and chooses a kernel
        began, seconds = time.perf_counter(), []
        while time.perf_counter() - began < _PRODUCT_SECONDS:
            seconds.append(_time_products(x, y, products, device))
    except RuntimeError as error:
        if is_out_of_memory(error):
            return None
        raise
    return _PRODUCTS * 2 * width**3 / min(seconds)


def _time_products(x: torch.Tensor, y: torch.Tensor, products: torch.Tensor, device: Device) -> float:
    began = time.perf_counter()
    for _ in range(_PRODUCTS):
        torch.mm(x, y, out=products)
    if device.is_cuda:
        torch.cuda.synchronize(device.torch)
    return time.perf_counter() - began


def _cpu_multiplies_bf16() -> bool:
    """Whether oneDNN has bfloat16 products on this processor. torch may be built without oneDNN."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def on_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the host to the device, without waiting for what the device does now."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def free_memory_bytes(device: Device) -> int:
    """Bytes of memory that a new allocation may take now."""
    if device.is_cuda:
        free, _total = torch.cuda.mem_get_info(device.torch)
        return int(free)
    return int(psutil.virtual_memory().available)


def peak_memory_bytes(device: Device) -> int:
    """The most bytes that this process has had allocated: of the GPU, or resident memory on a CPU."""
    if device.is_cuda:
        return int(torch.cuda.max_memory_allocated(device.torch))
    kilobytes_or_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes_or_bytes * (1 if sys.platform == "darwin" else 1024)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that the device or the host had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def is_device_error(error: BaseException) -> bool:
    """Whether the error is a fault that CUDA reports."""
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and "CUDA error" in str(error)
    )


if __name__ == "__main__":
    found = [
        device.model_copy(update={"matrix_rate": measure_matrix_rate(device)}) for device in find_devices()
    ]
    print(TypeAdapter(list[Device]).dump_json(found).decode())
