from pathlib import Path

import pytest

from worker.doctor.device import DeviceProbe, Gpu, _driver, examine_device, judge_bitsandbytes, judge_gpu
from worker.doctor.findings import Finding, FindingLevel

GIB = 1 << 30
GPU = Gpu("NVIDIA H100", "9.0", free_bytes=70 * GIB, total_bytes=80 * GIB)
WORKS = DeviceProbe(driver="570.86.10", torch="2.13.0", cuda="13.0", gpus=(GPU,), compiler="/usr/bin/cc")


def first(probe: DeviceProbe, *, require_gpu: bool = False) -> Finding:
    return judge_gpu(probe, require_gpu=require_gpu)[0]


def test_a_gpu_that_computes_is_ok() -> None:
    findings = judge_gpu(WORKS, require_gpu=True)
    assert {finding.level for finding in findings} == {FindingLevel.OK}
    assert findings[0].text == "NVIDIA H100 (compute capability 9.0), 70.0 of 80.0 GiB free"
    assert [finding.text for finding in findings[1:3]] == ["NVIDIA 570.86.10", "torch 2.13.0, CUDA 13.0"]


def test_a_gpu_that_does_not_compute_is_a_failure() -> None:
    broken = Gpu("NVIDIA H100", "9.0", free_bytes=0, total_bytes=80 * GIB, error="CUDA error: ECC")
    probe = DeviceProbe("570.86.10", "2.13.0", "13.0", gpus=(broken,))
    assert first(probe).level is FindingLevel.FAILURE
    assert "CUDA error: ECC" in first(probe).text


def test_a_gpu_whose_memory_is_taken_is_a_warning() -> None:
    full = Gpu("NVIDIA H100", "9.0", free_bytes=GIB, total_bytes=80 * GIB)
    assert first(DeviceProbe("570", "2.13.0", "13.0", gpus=(full,))).level is FindingLevel.WARNING


def test_every_gpu_is_examined() -> None:
    broken = Gpu("NVIDIA H100", "9.0", free_bytes=0, total_bytes=80 * GIB, error="CUDA error: ECC")
    findings = judge_gpu(DeviceProbe("570", "2.13.0", "13.0", gpus=(GPU, broken)), require_gpu=True)
    assert [(finding.subject, finding.level) for finding in findings[:2]] == [
        ("GPU 0", FindingLevel.OK),
        ("GPU 1", FindingLevel.FAILURE),
    ]


@pytest.mark.parametrize(
    ("driver", "cuda", "require_gpu", "level", "said"),
    [
        (None, None, False, FindingLevel.WARNING, "on the CPU"),
        (None, "13.0", False, FindingLevel.WARNING, "on the CPU"),
        ("570.86.10", None, False, FindingLevel.WARNING, "on the CPU"),
        ("470.10.01", "13.0", False, FindingLevel.FAILURE, "torch can't use it"),
        (None, "13.0", True, FindingLevel.FAILURE, "No NVIDIA driver"),
        ("570.86.10", None, True, FindingLevel.FAILURE, "without CUDA"),
        (None, None, True, FindingLevel.FAILURE, "No NVIDIA driver"),
    ],
)
def test_no_gpu_is_a_failure_where_one_is_wanted_or_half_there(
    driver: str | None, cuda: str | None, require_gpu: bool, level: FindingLevel, said: str
) -> None:
    finding = first(DeviceProbe(driver, "2.13.0", cuda), require_gpu=require_gpu)
    assert finding.level is level
    assert said in finding.text


def test_a_gpu_without_a_c_compiler_is_a_warning() -> None:
    compiler = judge_gpu(DeviceProbe("570", "2.13.0", "13.0", gpus=(GPU,)), require_gpu=True)[-1]
    assert (compiler.subject, compiler.level) == ("C compiler", FindingLevel.WARNING)


@pytest.mark.parametrize(
    ("status", "output", "level"),
    [
        (0, "Checking…\nSUCCESS!\n", FindingLevel.OK),
        (0, "No CUDA, ROCm, or XPU detected; CPU library loaded successfully.\n", FindingLevel.OK),
        (0, "No CUDA, ROCm, or XPU detected; CPU library failed to load.\n", FindingLevel.FAILURE),
        (1, "", FindingLevel.FAILURE),
    ],
)
def test_bitsandbytes_own_check_is_believed(status: int, output: str, level: FindingLevel) -> None:
    assert judge_bitsandbytes(status, output).level is level


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19\n", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build\n", "570.86.10"),
        ("something else\n", "of an unknown version"),
    ],
)
def test_the_driver_s_version_is_read_from_the_kernel(tmp_path: Path, text: str, version: str) -> None:
    (tmp_path / "version").write_text(text)
    assert _driver(tmp_path / "version") == version


def test_without_the_kernel_s_file_there_is_no_driver(tmp_path: Path) -> None:
    assert _driver(tmp_path / "version") is None


def test_this_machine_s_own_device_is_examined() -> None:
    subjects = {finding.subject: finding for finding in examine_device(require_gpu=False)}
    assert subjects.keys() & {"GPU", "GPU 0"}
    assert subjects.keys() >= {"driver", "CUDA", "memory", "bitsandbytes"}
    assert subjects["bitsandbytes"].level is FindingLevel.OK
