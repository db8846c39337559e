"""Examines the GPU, its driver, CUDA, the C compiler, bitsandbytes and memory.

The probing and the judgement are separate functions: `judge_gpu` is pure.
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
    """A GPU; `error` says why it does not compute."""

    name: str
    capability: str
    free_bytes: int
    total_bytes: int
    error: str | None = None


@dataclass(frozen=True)
class DeviceProbe:
    """The kernel's driver, torch's CUDA version, and the GPUs that torch can use."""

    driver: str | None
    torch: str
    cuda: str | None
    gpus: tuple[Gpu, ...] = ()
    compiler: str | None = None


def examine_device(*, require_gpu: bool) -> list[Finding]:
    """Findings on GPU, driver, CUDA, compiler, memory and bitsandbytes."""
    try:
        probe = _probe()
    except (ImportError, OSError) as error:
        hint = "Install the worker's packages again: pip install 'tunesmith[worker]'."
        return [failure("torch", f"It can't be imported: {error}", hint)]
    return [*judge_gpu(probe, require_gpu=require_gpu), _memory(), _bitsandbytes()]


def judge_gpu(probe: DeviceProbe, *, require_gpu: bool) -> list[Finding]:
    """Findings on GPU, driver, CUDA and compiler from a probe."""
    driver = ok("driver", f"NVIDIA {probe.driver}") if probe.driver else ok("driver", "none")
    cuda = ok("CUDA", f"torch {probe.torch}, " + (f"CUDA {probe.cuda}" if probe.cuda else "without CUDA"))
    if not probe.gpus:
        return [_no_gpu(probe, require_gpu), driver, cuda]
    names = ["GPU"] if len(probe.gpus) == 1 else [f"GPU {index}" for index in range(len(probe.gpus))]
    return [*map(_gpu, names, probe.gpus), driver, cuda, _compiler(probe.compiler)]


def _gpu(name: str, gpu: Gpu) -> Finding:
    free = f"{gpu.free_bytes / _GIB:.1f} of {gpu.total_bytes / _GIB:.1f} GiB free"
    text = f"{gpu.name} (compute capability {gpu.capability}), {free}"
    if gpu.error:
        hint = "The driver or the GPU may need a restart; `nvidia-smi` and the kernel's log tell more."
        return failure(name, f"{text}. It does not compute: {gpu.error}", hint)
    if gpu.free_bytes < _LOW_MEMORY_BYTES:
        return warning(name, text, "Another process holds its memory: `nvidia-smi` names it.")
    return ok(name, text)


def _no_gpu(probe: DeviceProbe, require_gpu: bool) -> Finding:
    if probe.driver and probe.cuda:
        hint = (
            f"The driver may be too old for CUDA {probe.cuda}, or this container was started without its GPU."
        )
        return failure("GPU", "There is a driver, but torch can't use it: jobs run on the CPU.", hint)
    if not require_gpu:
        return warning("GPU", "none: jobs run on the CPU, which is for small models")
    if probe.driver:
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
    """Run bitsandbytes' own check in a process of its own, which a broken library may crash."""
    command = [sys.executable, "-m", "bitsandbytes"]
    try:
        check = subprocess.run(command, capture_output=True, text=True, timeout=_BITSANDBYTES_SECONDS)
    except subprocess.TimeoutExpired:
        return failure("bitsandbytes", f"Its own check did not end within {_BITSANDBYTES_SECONDS} s.")
    return judge_bitsandbytes(check.returncode, check.stdout)


def judge_bitsandbytes(status: int, output: str) -> Finding:
    """A finding from the output of `python -m bitsandbytes`, which may exit with 0 without a CPU library."""
    last = (output.strip().splitlines() or ["it printed nothing"])[-1]
    if status == 0 and "failed to load" not in output:
        return ok("bitsandbytes", last)
    hint = "4-bit training won't work. Run `python -m bitsandbytes` for all it has to say."
    return failure("bitsandbytes", f"Its own check failed with status {status}: {last}", hint)


def _probe() -> DeviceProbe:
    # Imported here: a failing import is a finding.
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return DeviceProbe(
        driver=_driver(_DRIVER_VERSION),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        gpus=tuple(map(_probe_gpu, range(count))),
        compiler=shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"),
    )


def _probe_gpu(index: int) -> Gpu:
    import torch

    properties = torch.cuda.get_device_properties(index)
    free, total, error = 0, properties.total_memory, None
    try:
        free, total = torch.cuda.mem_get_info(index)
        ones = torch.ones(64, 64, device=torch.device("cuda", index))
        if (ones @ ones).sum().item() != 64**3:
            error = "a product of two matrices is wrong"
    except RuntimeError as failure_of_cuda:
        error = str(failure_of_cuda).splitlines()[0]
    capability = f"{properties.major}.{properties.minor}"
    return Gpu(properties.name, capability, free_bytes=free, total_bytes=total, error=error)


def _driver(path: Path) -> str | None:
    """The version of the kernel's NVIDIA driver, which is visible in containers too; None without one."""
    try:
        text = path.read_text()
    except OSError:
        return None
    found = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", text)
    return found.group(1) if found else "of an unknown version"
