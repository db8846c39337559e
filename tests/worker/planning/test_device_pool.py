"""Devices of a host: which a job gets, what its processes see, and what is said of each."""

import pytest

from app.core.engine.devices import DeviceState, WorkerDevice
from worker.planning.device_pool import DevicePool


def gpus(count: int) -> list[WorkerDevice]:
    return [
        WorkerDevice(kind="cuda", name="GPU", index=place, uuid=f"GPU-{place}", memory_bytes=80)
        for place in range(count)
    ]


CPU = WorkerDevice(kind="cpu", name="CPU", memory_bytes=8)


def states(pool: DevicePool, **options: list[int]) -> list[str]:
    return [str(device.state) for device in pool.describe({}, **options)]


def test_jobs_get_devices_that_do_not_serve_first() -> None:
    pool = DevicePool(gpus(3), serving=[0])
    pool.take("a", 1)
    pool.take("b", 1)
    assert pool.environment("a") == {"CUDA_VISIBLE_DEVICES": "GPU-1"}
    assert pool.find_serving("b") == []
    pool.take("c", 1)
    assert pool.find_serving("c") == [0]
    assert pool.free == 0


def test_a_job_sees_all_of_its_devices_and_no_other() -> None:
    pool = DevicePool(gpus(4))
    pool.take("a", 1)
    pool.take("b", 3)
    assert pool.environment("b") == {"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2,GPU-3"}
    pool.give_back("b")
    assert (pool.free, pool.jobs) == (3, {"a"})


def test_devices_that_only_serve_are_given_to_no_job() -> None:
    pool = DevicePool(gpus(4), serving=[0, 1], only_serving=[0, 1])
    assert (pool.total, pool.free) == (2, 2)
    pool.take("a", 2)
    assert pool.find_serving("a") == []
    assert states(pool) == ["serving", "serving", "training", "training"]


def test_what_each_device_does_is_said() -> None:
    pool = DevicePool(gpus(3), serving=[0])
    pool.take("a", 1)
    assert states(pool) == ["serving", "training", "free"]
    pool.take("b", 2)
    assert states(pool)[0] == DeviceState.SHARED
    assert states(pool, paused=[0])[0] == DeviceState.TRAINING
    first, second, _third = pool.describe({"GPU-1": {"free_bytes": 5}})
    assert (first.job, second.job, second.free_bytes) == ("b", "a", 5)


def test_an_export_gets_a_gpu_that_nothing_else_is_on_and_no_job_gets_it() -> None:
    pool = DevicePool(gpus(4), serving=[0, 1], only_serving=[0])
    pool.take("a", 1)

    assert pool.take_idle("x") == "GPU-3"
    # The other one has an engine.
    assert pool.take_idle("y") is None
    assert (pool.free, pool.jobs) == (1, {"a"})
    assert states(pool) == ["serving", "serving", "training", "exporting"]
    pool.give_back_idle("x")
    assert (pool.free, states(pool)[3]) == (2, "free")


@pytest.mark.parametrize("options", [{"serving": [0]}, {"last": [0]}])
def test_an_export_gets_no_gpu_that_this_or_another_worker_serves_on(options: dict[str, list[int]]) -> None:
    assert DevicePool(gpus(1), **options).take_idle("x") is None


def test_an_export_gets_no_cpu_to_itself() -> None:
    assert DevicePool([CPU]).take_idle("x") is None


def test_a_host_of_one_device_changes_no_environment() -> None:
    pool = DevicePool(gpus(1), serving=[0])
    assert pool.next_environment() == {}
    pool.take("a", 1)
    assert (pool.environment("a"), pool.next_environment()) == ({}, {})


def test_the_environment_of_the_next_job_is_known_while_a_device_is_free() -> None:
    pool = DevicePool(gpus(2), serving=[0])
    assert pool.next_environment() == {"CUDA_VISIBLE_DEVICES": "GPU-1"}
    pool.take("a", 2)
    assert pool.next_environment() is None


@pytest.mark.parametrize("ranks", [1, 4])
def test_one_job_at_a_time_runs_on_a_cpu_in_so_many_processes(ranks: int) -> None:
    pool = DevicePool([CPU], serving=[0], cpu_ranks=ranks)
    assert pool.free == pool.total == ranks
    pool.take("a", 1)
    assert pool.free == 0
    assert states(pool) == ["training and serving"]
    pool.give_back("a")
    assert pool.free == ranks
    pool.take("b", ranks)
    assert pool.free == 0


def test_jobs_get_devices_last_on_which_another_worker_may_serve() -> None:
    pool = DevicePool(gpus(2), last=[0])
    pool.take("a", 1)
    assert pool.environment("a") == {"CUDA_VISIBLE_DEVICES": "GPU-1"}
    pool.take("b", 1)
    assert (pool.environment("b"), pool.find_serving("b")) == ({"CUDA_VISIBLE_DEVICES": "GPU-0"}, [])
