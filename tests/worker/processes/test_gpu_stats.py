import sys

import pytest

from worker.processes.gpu_stats import GpuStats, parse


def test_the_driver_s_line_is_read() -> None:
    found = parse("78213, 97, 64\n")
    assert found == {"free_bytes": 78213 << 20, "utilization_percent": 97, "temperature_celsius": 64}


def test_a_figure_that_the_driver_does_not_know_is_left_out() -> None:
    assert parse("100, [N/A], 40") == {"free_bytes": 100 << 20, "temperature_celsius": 40}


def test_the_memory_of_a_cpu_s_machine_is_read() -> None:
    found = GpuStats().read("cpu")
    assert found["free_bytes"] > 0
    assert 0 <= found["utilization_percent"] <= 100


def test_the_driver_s_tool_is_asked_for_a_gpu() -> None:
    stats = GpuStats([sys.executable, "-c", "print('1, 2, 3')"])
    assert stats.read("cuda")["utilization_percent"] == 2


@pytest.mark.parametrize("script", ["raise SystemExit(9)", "print('No devices')", "pass"])
def test_a_tool_that_fails_is_not_asked_again(script: str) -> None:
    stats = GpuStats([sys.executable, "-c", script])
    assert stats.read("cuda") == {}
    stats._command = [sys.executable, "-c", "print('1, 2, 3')"]
    assert stats.read("cuda") == {}


def test_where_no_device_was_found_nothing_is_known() -> None:
    assert GpuStats(["no-such-tool"]).read(None) == {}
