"""LoRA by kernels (here in Triton's interpreter), by dense matmuls, and by torch: the same result."""

import pytest
import torch
from torch import nn

from worker.inference.adapters.cache import CachedAdapter, LoraPair
from worker.inference.adapters.lora_weights import LoraSlots
from worker.inference.model.linears import merge_linears

WIDTHS = {"layer.q_proj": 48, "layer.k_proj": 16, "layer.v_proj": 16}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_slots(*, uses_kernels: bool, count: int = 3) -> tuple[nn.ModuleDict, LoraSlots]:
    torch.manual_seed(0)
    layer = nn.ModuleDict({name[6:]: nn.Linear(32, width) for name, width in WIDTHS.items()})
    model = nn.ModuleDict({"layer": layer}).to(DEVICE)
    groups = merge_linears(model)
    slots = LoraSlots(model, groups, count=count, dtype=torch.float32, uses_kernels=uses_kernels)
    return model, slots


def make_adapter(tmp_path, name: str, rank: int, targets: list[str]) -> CachedAdapter:
    pairs = {
        target: LoraPair(torch.randn(rank, 32) / 5, torch.randn(WIDTHS[target], rank) / 5)
        for target in targets
    }
    return CachedAdapter(name, tmp_path, pairs)


@pytest.mark.parametrize("count", [1, 5, 40, 200], ids=["one", "few", "many", "a prompt's"])
@pytest.mark.parametrize("highest", [1, 2])
@torch.inference_mode()
def test_kernels_add_what_plain_torch_adds(count, highest, tmp_path):
    adapters = [
        make_adapter(tmp_path, "all", 4, list(WIDTHS)),
        make_adapter(tmp_path, "wide", 20, ["layer.q_proj", "layer.v_proj"]),
    ]
    x_1NI = torch.randn(1, count, 32, device=DEVICE)
    slots_N = torch.randint(0, highest + 1, (count,), device=DEVICE)
    answers = []
    for uses_kernels in (False, True):
        model, slots = make_slots(uses_kernels=uses_kernels)
        for slot, adapter in enumerate(adapters, start=1):
            slots.load(slot, adapter)
        slots.select(set(slots_N.tolist()), slots_N)
        slots.begin(count)
        answers.append([linear(x_1NI) for linear in model["layer"].values()])

    torch.testing.assert_close(answers[1], answers[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("uses_kernels", [False, True])
@torch.inference_mode()
def test_a_rank_that_memory_lacks_for_leaves_the_other_adapters_as_they_are(
    uses_kernels, tmp_path, monkeypatch
):
    model, slots = make_slots(uses_kernels=uses_kernels)
    slots.load(1, make_adapter(tmp_path, "all", 4, list(WIDTHS)))
    group = next(iter(slots._lora.values()))
    x_1NI = torch.randn(1, 5, 32, device=DEVICE)
    slots_N = torch.ones(5, dtype=torch.long, device=DEVICE)

    def answer() -> list[torch.Tensor]:
        slots.select({1}, slots_N)
        return [linear(x_1NI) for linear in model["layer"].values()]

    expected = answer()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros", out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            slots.load(2, make_adapter(tmp_path, "wide", 40, list(WIDTHS)))

    torch.testing.assert_close(answer(), expected)
    slots.load(2, make_adapter(tmp_path, "wide", 40, list(WIDTHS)))
    assert group.rank == 48
    torch.testing.assert_close(answer(), expected, atol=1e-5, rtol=1e-5)


def out_of_memory(*_sizes: object, **_options: object) -> torch.Tensor:
    raise torch.OutOfMemoryError("no memory")


@torch.inference_mode()
def test_without_an_adapter_in_the_batch_nothing_is_added(tmp_path):
    model, slots = make_slots(uses_kernels=True)
    x_1NI = torch.randn(1, 5, 32, device=DEVICE)
    expected = [linear(x_1NI) for linear in model["layer"].values()]
    slots.load(1, make_adapter(tmp_path, "all", 4, list(WIDTHS)))
    slots.select({0}, torch.zeros(5, dtype=torch.long, device=DEVICE))

    torch.testing.assert_close([linear(x_1NI) for linear in model["layer"].values()], expected)


@pytest.mark.parametrize(("highest", "computed"), [(0, 0), (1, 1), (2, 2), (3, 4), (4, 4), (5, 5)])
@torch.inference_mode()
def test_slots_are_computed_up_to_the_next_power_of_two(highest, computed, tmp_path):
    _, slots = make_slots(uses_kernels=True, count=5)
    slots.load(5, make_adapter(tmp_path, "all", 4, list(WIDTHS)))
    slots.select({highest}, torch.full((5,), highest, device=DEVICE))

    assert slots.slot_count == computed
    if slots.selection is not None:
        lora = next(iter(slots._lora.values()))
        _, inner_NC = lora.products(torch.randn(5, 32, device=DEVICE), slots.selection)
        assert inner_NC.shape == (5, computed * len(WIDTHS) * lora.rank)


@pytest.mark.parametrize("uses_kernels", [False, True])
@torch.inference_mode()
def test_adapters_that_change_places_compute_what_they_did_in_the_same_memory(uses_kernels, tmp_path):
    model, slots = make_slots(uses_kernels=uses_kernels)
    slots.load(1, make_adapter(tmp_path, "one", 4, list(WIDTHS)))
    slots.load(3, make_adapter(tmp_path, "three", 20, ["layer.q_proj"]))
    group = next(iter(slots._lora.values()))
    x_1NI, slots_N = torch.randn(1, 4, 32, device=DEVICE), torch.tensor([1, 3, 0, 2], device=DEVICE)
    slots.select({0, 1, 2, 3}, slots_N)
    before = [linear(x_1NI) for linear in model["layer"].values()]
    places, layout = (group.A_SMRI.data_ptr(), group.B_SRO.data_ptr()), slots.layout_version

    assert slots.swap(3, 1)

    # What a captured step reads has changed in place.
    slots_N.copy_(torch.tensor([3, 1, 0, 2]))
    slots.begin(4)
    torch.testing.assert_close(
        [linear(x_1NI) for linear in model["layer"].values()], before, atol=1e-6, rtol=1e-6
    )
    assert ((group.A_SMRI.data_ptr(), group.B_SRO.data_ptr()), slots.layout_version) == (places, layout)


@torch.inference_mode()
def test_a_swap_that_memory_lacks_for_changes_nothing(tmp_path, monkeypatch):
    _, slots = make_slots(uses_kernels=False)
    slots.load(2, make_adapter(tmp_path, "two", 4, list(WIDTHS)))
    group = next(iter(slots._lora.values()))
    A_SMRI, B_SRO = group.A_SMRI.clone(), group.B_SRO.clone()
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            slots.swap(2, 1)

    torch.testing.assert_close((group.A_SMRI, group.B_SRO), (A_SMRI, B_SRO))
