import sys

import pytest

from worker.processes.gpu_stats import GpuStats, parse


def test_the_driver_s_lines_are_read() -> None:
    found = parse("GPU-a, 78213, 97, 64\nGPU-b, 5, 0, 30\n")
    assert found["GPU-a"] == {"free_bytes": 78213 << 20, "utilization_percent": 97, "temperature_celsius": 64}
    assert found["GPU-b"]["free_bytes"] == 5 << 20


def test_a_figure_that_the_driver_does_not_know_is_left_out() -> None:
    assert parse("GPU-a, 100, [N/A], 40") == {"GPU-a": {"free_bytes": 100 << 20, "temperature_celsius": 40}}


def test_the_memory_of_a_cpu_s_machine_is_read() -> None:
    found = GpuStats().read("cpu")[None]
    assert found["free_bytes"] > 0
    assert 0 <= found["utilization_percent"] <= 100


def test_the_driver_s_tool_is_asked_for_gpus() -> None:
    stats = GpuStats([sys.executable, "-c", "print('GPU-a, 1, 2, 3')"])
    assert stats.read("cuda")["GPU-a"]["utilization_percent"] == 2


@pytest.mark.parametrize("script", ["raise SystemExit(9)", "print('No devices')", "pass"])
def test_a_tool_that_fails_is_not_asked_again(script: str) -> None:
    stats = GpuStats([sys.executable, "-c", script])
    assert stats.read("cuda") == {}
    stats._command = [sys.executable, "-c", "print('GPU-a, 1, 2, 3')"]
    assert stats.read("cuda") == {}


def test_where_no_device_was_found_nothing_is_known() -> None:
    assert GpuStats(["no-such-tool"]).read(None) == {}
