"""Adapters are applied whole or refused by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from app.core.engine.messages import AdapterRef
from app.core.errors import NotFound
from app.core.specs.job import QuantizationSpec
from app.core.storage.artifacts import ArtifactStore
from tests.worker.inference.conftest import peft_warnings_ignored, save_adapter
from worker.inference.adapters.cache import AdapterCache, read_adapter
from worker.inference.adapters.lora_weights import LoraSlots
from worker.inference.failures import AdapterUnsupported
from worker.inference.general.adapters import PeftFolder
from worker.inference.model.linears import merge_linears
from worker.models.base_model import load_for_serving
from worker.models.device import find_device
from worker.models.serving_path import find_obstacles


@pytest.fixture
def folder(adapters_folder: Path, tmp_path: Path) -> Path:
    """A copy that may be spoiled."""
    return Path(shutil.copytree(adapters_folder / "attention", tmp_path / "adapter"))


def configure(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"something_new": 1}, "something_new"),
    ],
)
def test_settings_that_can_not_be_applied_are_refused_by_name(folder, changes, word):
    configure(folder, **changes)

    with pytest.raises(AdapterUnsupported, match=word):
        read_adapter("ad", folder)


def test_weights_that_are_infinite_in_the_type_of_the_base_model_are_refused(folder):
    configure(folder, lora_alpha=1e30)
    adapter = read_adapter("ad", folder)

    assert adapter.ready_for(torch.float32, pinned=False)
    with pytest.raises(AdapterUnsupported, match="too large for float16"):
        adapter.ready_for(torch.float16, pinned=False)


def test_a_rank_above_the_highest_is_refused(folder):
    weights = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_A" in name)
    other = name.replace("lora_A", "lora_B")
    weights[name] = torch.ones(1025, weights[name].shape[1])
    weights[other] = torch.ones(weights[other].shape[0], 1025)
    save_file(weights, folder / "adapter_model.safetensors")

    with pytest.raises(AdapterUnsupported, match="rank 1025"):
        read_adapter("ad", folder)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"use_dora": True}, "lora.use_dora"),
        ({"use_dora": True, "modules_to_save": ["lm_head"]}, "lora.use_dora, lora.modules_to_save"),
        ({"bias": "all"}, "lora.bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"fan_in_fan_out": True}, "lora.target_modules (transposed layers)"),
    ],
)
def test_settings_that_only_peft_applies_are_named_as_in_a_jobs_spec(folder, changes, name):
    configure(folder, **changes)

    adapter = read_adapter("ad", folder)

    assert isinstance(adapter, PeftFolder)
    assert adapter.obstacle == name


@pytest.mark.parametrize(
    "lora",
    [
        {"use_dora": True, "target_modules": ["q_proj"]},
        {"modules_to_save": ["lm_head"], "use_dora": True, "target_modules": ["embed_tokens", "q_proj"]},
    ],
)
def test_the_engine_and_the_record_of_an_adapter_name_the_same_obstacles(models_folder, tmp_path, lora):
    base = models_folder / "tiny-llama"
    with peft_warnings_ignored():
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, **lora))
    adapter = read_adapter("ad", save_adapter(base, tmp_path, r=2, **lora))

    assert isinstance(adapter, PeftFolder)
    assert adapter.obstacle == ", ".join(find_obstacles(model))


def test_weights_that_only_peft_applies_are_named(models_folder, tmp_path):
    targets = ["embed_tokens", "q_proj"]
    folder = save_adapter(models_folder / "tiny-llama", tmp_path / "e", r=2, target_modules=targets)

    adapter = read_adapter("ad", folder)

    assert isinstance(adapter, PeftFolder)
    assert adapter.obstacle == "lora.target_modules (the embedding layer)"


def test_weights_that_are_not_finite_are_refused(folder):
    weights = load_file(folder / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] = torch.nan
    save_file(weights, folder / "adapter_model.safetensors")

    with pytest.raises(AdapterUnsupported, match="not finite"):
        read_adapter("ad", folder)


def test_file_that_is_no_safetensors_is_refused(folder):
    (folder / "adapter_model.safetensors").write_bytes(b"pickle")

    with pytest.raises(AdapterUnsupported, match="can't be used"):
        read_adapter("ad", folder)


def test_adapter_of_another_base_model_is_refused(folder, models_folder):
    weights = load_file(folder / "adapter_model.safetensors")
    narrow = {
        name: tensor[:, :-1].contiguous() if "lora_A" in name else tensor for name, tensor in weights.items()
    }
    save_file(narrow, folder / "adapter_model.safetensors")
    device = find_device()
    model = load_for_serving(models_folder / "tiny-llama", QuantizationSpec(load_in_4bit=False), device)
    slots = LoraSlots(model, merge_linears(model), count=1, dtype=model.dtype)

    with pytest.raises(AdapterUnsupported, match="63 inputs") as caught:
        slots.load(1, read_adapter("ad", folder))
    assert "another base model" in (caught.value.hint or "")


def test_missing_artifact_is_not_found(tmp_path):
    cache = AdapterCache(ArtifactStore(str(tmp_path)), tmp_path / "cache", max_bytes=1)

    with pytest.raises(NotFound, match="ad_1"):
        cache.get(AdapterRef(id="ad_1", artifact="adapters/ad_1"))


def test_cache_keeps_the_latest_within_its_bytes(adapters_folder, tmp_path):
    cache = AdapterCache(ArtifactStore(str(adapters_folder)), tmp_path / "cache", max_bytes=20_000)
    attention = AdapterRef(id="a", artifact="attention")
    first = cache.get(attention)

    assert cache.get(attention) is first
    cache.get(AdapterRef(id="b", artifact="everything"))
    assert cache.get(attention) is not first


def test_adapter_in_an_object_store_is_copied_once(adapters_folder, tmp_path):
    store = ArtifactStore("memory://adapters")
    store.put_folder("ad_9", adapters_folder / "attention")
    cache = AdapterCache(store, tmp_path / "cache", max_bytes=1 << 30)

    adapter = cache.get(AdapterRef(id="ad_9", artifact="ad_9"))

    assert adapter.folder == tmp_path / "cache" / "ad_9"
    assert adapter.rank == 4
