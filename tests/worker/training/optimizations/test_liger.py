"""Liger's kernels are applied to a model and undone; only a GPU runs them."""

from peft import PeftModel
from transformers.models.llama import modeling_llama

from worker.training.optimizations import liger


def what_is_there(model: PeftModel) -> list[dict[str, object]]:
    base = model.get_base_model()
    return [dict(vars(modeling_llama)), *(dict(vars(module)) for module in base.modules())]


def test_a_model_is_restored(model: PeftModel) -> None:
    base = model.get_base_model()
    before = what_is_there(model)

    with liger.applied(model):
        norm = base.model.norm.forward.__func__
        assert norm.__module__.startswith("liger_kernel")
        assert modeling_llama.apply_rotary_pos_emb.__module__.startswith("liger_kernel")
        model.train()  # what others change meanwhile stays

    after = what_is_there(model)
    assert [list(one) for one in after] == [list(one) for one in before]
    assert all(
        new[name] is old[name] or name == "training"
        for old, new in zip(before, after, strict=True)
        for name in old
    )
    assert base.training
