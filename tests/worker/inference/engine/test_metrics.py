"""What the engine counts, in Prometheus' text format."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.worker.inference.engine.bench import Bench


@pytest.fixture
def bench():
    return Bench(slots=3)


def read(bench, name, **labels):
    """The sum of a series over what the labels leave open."""
    text = bench.engine.metrics.render().decode()
    samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
    found = [
        one.value
        for one in samples
        if one.name == f"tunesmith_engine_{name}" and labels.items() <= one.labels.items()
    ]
    assert found, name
    return sum(found)


def test_tokens_and_requests_are_counted(bench):
    bench.finish(
        bench.submit(prompt_length=20, max_new_tokens=5), bench.submit(max_new_tokens=2, adapter="x")
    )

    assert read(bench, "generation_tokens_total") == 7
    assert read(bench, "requests_total", finished_reason="length") == 2
    assert read(bench, "adapter_loads_total") == 1
    assert read(bench, "base_model_load_seconds_count") == 1
    assert read(bench, "time_to_first_token_seconds_count") == 2
    assert read(bench, "e2e_request_latency_seconds_count") == 2
    assert read(bench, "step_seconds_count") > 0


def test_prompts_count_once_read_or_found_in_the_cache(bench):
    prompt = list(range(100, 150))
    bench.finish(bench.submit(token_ids=prompt, max_new_tokens=1))
    assert (read(bench, "prompt_tokens_total"), read(bench, "prompt_tokens_cached_total")) == (50, 0)

    bench.finish(bench.submit(token_ids=prompt, max_new_tokens=1))
    total = read(bench, "prompt_tokens_total") + read(bench, "prompt_tokens_cached_total")
    assert (total, read(bench, "prompt_tokens_cached_total")) == (100, 48)


def test_what_runs_now_is_shown_by_base_model(bench):
    sequence = bench.submit(prompt_length=40, max_new_tokens=50, adapter="x")
    waiting = bench.submit(base="other")
    while not sequence.token_ids:
        bench.engine.step()

    assert read(bench, "num_requests_running") == 1
    assert read(bench, "num_requests_waiting", base_model="other") == 1
    base = sequence.prompt.base_model.name
    assert read(bench, "adapter_slots_used", base_model=base) == 1
    assert read(bench, "adapter_slots", base_model=base) == 3
    used = read(bench, "kv_cache_blocks_used", base_model=base)
    assert used == len(sequence.blocks) > 0
    assert used <= read(bench, "kv_cache_blocks", base_model=base)
    bench.engine.cancel(waiting)


def test_a_refused_request_is_counted_by_its_code(bench):
    bench.finish(bench.submit(prompt_length=200))

    assert read(bench, "requests_total", finished_reason="context_length_exceeded") == 1
