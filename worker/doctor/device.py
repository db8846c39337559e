"""The GPU, its driver, CUDA, bitsandbytes and memory, as this machine shows them.

What is seen and what it means stand apart: `judge_gpu` is pure.
"""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from worker.doctor.findings import Finding, failure, ok, warning

_DRIVER_VERSION = Path("/proc/driver/nvidia/version")
_LOW_MEMORY_BYTES = 4 << 30
_BITSANDBYTES_SECONDS = 180
_GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """The first GPU, and whether it computes."""

    name: str
    capability: str
    free_bytes: int
    total_bytes: int
    error: str | None = None


@dataclass(frozen=True)
class Sight:
    """What there is to see of a GPU: the kernel's driver, torch's CUDA, and what torch makes of both."""

    driver: str | None
    torch: str
    cuda: str | None
    gpus: int = 0
    gpu: Gpu | None = None
    compiler: str | None = None


def examine_device(*, require_gpu: bool) -> list[Finding]:
    """GPU, driver, CUDA, compiler, memory, bitsandbytes."""
    try:
        sight = _look()
    except (ImportError, OSError) as error:
        hint = "Install the worker's packages again: pip install 'tunesmith[worker]'."
        return [failure("torch", f"It can't be imported: {error}", hint)]
    return [*judge_gpu(sight, require_gpu=require_gpu), _memory(), _bitsandbytes()]


def judge_gpu(sight: Sight, *, require_gpu: bool) -> list[Finding]:
    """What the sight of a GPU, or of none, means."""
    driver = ok("driver", f"NVIDIA {sight.driver}") if sight.driver else ok("driver", "none")
    cuda = ok("CUDA", f"torch {sight.torch}, " + (f"CUDA {sight.cuda}" if sight.cuda else "without CUDA"))
    if sight.gpu is None:
        return [_no_gpu(sight, require_gpu), driver, cuda]
    return [_gpu(sight.gpu, sight.gpus), driver, cuda, _compiler(sight.compiler)]


def _gpu(gpu: Gpu, count: int) -> Finding:
    free = f"{gpu.free_bytes / _GIB:.1f} of {gpu.total_bytes / _GIB:.1f} GiB free"
    text = f"{gpu.name} (compute capability {gpu.capability}), {free}"
    if count > 1:
        text += f"; the first of {count}"
    if gpu.error:
        hint = "The driver or the GPU may need a restart; `nvidia-smi` and the kernel's log tell more."
        return failure("GPU", f"{text}. It does not compute: {gpu.error}", hint)
    if gpu.free_bytes < _LOW_MEMORY_BYTES:
        return warning("GPU", text, "Another process holds its memory: `nvidia-smi` names it.")
    return ok("GPU", text)


def _no_gpu(sight: Sight, require_gpu: bool) -> Finding:
    if sight.driver and sight.cuda:
        hint = (
            f"The driver may be too old for CUDA {sight.cuda}, or this container was started without its GPU."
        )
        return failure("GPU", "There is a driver, but torch can't use it: jobs run on the CPU.", hint)
    if not require_gpu:
        return warning("GPU", "none: jobs run on the CPU, which is for small models")
    if sight.driver:
        hint = "Install the CUDA build of torch; for containers, leave out compose.cpu.yaml."
        return failure("GPU", "torch is a build without CUDA.", hint)
    hint = "Install the NVIDIA driver; for containers, the NVIDIA container toolkit too."
    return failure("GPU", "No NVIDIA driver is to be seen here, and TUNESMITH_REQUIRE_GPU is set.", hint)


def _compiler(path: str | None) -> Finding:
    if path:
        return ok("C compiler", path)
    return warning(
        "C compiler", "none: Triton can't prepare GPU kernels", "Install gcc and Python's headers."
    )


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    text = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB of main memory free"
    if memory.available < _LOW_MEMORY_BYTES:
        return warning("memory", text, "Loading a base model may fail.")
    return ok("memory", text)


def _bitsandbytes() -> Finding:
    """bitsandbytes' own check, in a process of its own: a broken library may take its process along."""
    command = [sys.executable, "-m", "bitsandbytes"]
    try:
        check = subprocess.run(command, capture_output=True, text=True, timeout=_BITSANDBYTES_SECONDS)
    except subprocess.TimeoutExpired:
        return failure("bitsandbytes", f"Its own check did not end within {_BITSANDBYTES_SECONDS} s.")
    return judge_bitsandbytes(check.returncode, check.stdout)


def judge_bitsandbytes(status: int, output: str) -> Finding:
    """What `python -m bitsandbytes` said. It exits with 0 also where the CPU library failed to load."""
    last = (output.strip().splitlines() or ["it printed nothing"])[-1]
    if status == 0 and "failed to load" not in output:
        return ok("bitsandbytes", last)
    hint = "4-bit training won't work. Run `python -m bitsandbytes` for all it has to say."
    return failure("bitsandbytes", f"Its own check failed with status {status}: {last}", hint)


def _look() -> Sight:
    # Imported here: that this fails is one of the things to be found.
    import torch

    there = torch.cuda.is_available()
    return Sight(
        driver=_driver(_DRIVER_VERSION),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        gpus=torch.cuda.device_count() if there else 0,
        gpu=_first_gpu() if there else None,
        compiler=shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"),
    )


def _first_gpu() -> Gpu:
    import torch

    properties = torch.cuda.get_device_properties(0)
    free, total, error = 0, properties.total_memory, None
    try:
        free, total = torch.cuda.mem_get_info(0)
        ones = torch.ones(64, 64, device="cuda")
        if (ones @ ones).sum().item() != 64**3:
            error = "a product of two matrices is wrong"
    except RuntimeError as failure_of_cuda:
        error = str(failure_of_cuda).splitlines()[0]
    capability = f"{properties.major}.{properties.minor}"
    return Gpu(properties.name, capability, free_bytes=free, total_bytes=total, error=error)


def _driver(path: Path) -> str | None:
    """The version of the NVIDIA driver in the kernel; a container sees it too."""
    try:
        text = path.read_text()
    except OSError:
        return None
    found = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", text)
    return found.group(1) if found else "of an unknown version"
