"""GGUF files compute what the original model computes, for each family and each type."""

from pathlib import Path

import gguf
import pytest
import torch
from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedModel

from app.core.errors.exports import GgufFamilyUnknown, TokenizerUnfit
from app.core.specs.export import GgufType
from tests.worker.exports import families
from tests.worker.exports.conftest import MakeAdapter, write_gguf_of
from worker.exports import verification
from worker.exports.gguf.families import GgufLayout
from worker.exports.gguf.file import write_gguf
from worker.exports.gguf.lora import LoraFile, write_gguf_lora
from worker.exports.gguf.tokenizer import read_vocabulary
from worker.exports.merged.adapter_weights import read_adapter
from worker.exports.merged.checkpoint import SafetensorsCheckpoint
from worker.exports.merged.merge import read_shape
from worker.models import base_model
from worker.models.files import description

IDS = torch.tensor([[1, 260, 262, 270, 280, 290, 300, 310]])


def read_back(model: Path, path: Path, type: GgufType = GgufType.F16) -> PreTrainedModel:
    layout = GgufLayout.of(read_shape(model).config)
    return verification.load_gguf(write_gguf_of(model, path, type), layout.run_as, torch.float32)


def load(model: Path) -> PreTrainedModel:
    return verification.load_safetensors(model, torch.float32)


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def test_gguf_files_of_every_family_compute_the_original_logits(tmp_path: Path) -> None:
    tokenizer = families.byte_level_tokenizer()
    worst = {}
    for family in families.CONFIGS:
        model = families.make_family(family, tmp_path / family, tokenizer)

        found = read_back(model, tmp_path / "model.gguf")

        live = logits(verification.load_safetensors(model, torch.float32))
        worst[family] = ((logits(found) - live).abs().max() / live.abs().max()).item()
    assert {family: error for family, error in worst.items() if error > 1e-2} == {}


@pytest.mark.parametrize(
    ("type", "error"),
    [("bf16", 0.02), ("q8_0", 0.05), ("q5_1", 0.2), ("q5_0", 0.2), ("q4_1", 0.5), ("q4_0", 0.5)],
)
def test_a_type_with_fewer_bits_is_further_off(type: str, error: float, tmp_path: Path) -> None:
    model = families.make_family("llama", tmp_path / "model", families.byte_level_tokenizer())

    read, live = read_back(model, tmp_path / "model.gguf", GgufType(type)), load(model)

    for found, original in zip(read.model.layers, live.model.layers, strict=True):
        for name in ("q_proj", "k_proj"):
            rounded, exact = (getattr(layer.self_attn, name).weight for layer in (found, original))
            assert 0 < (rounded - exact).norm() / exact.norm() < error


@pytest.mark.parametrize("hidden", [256, 64], ids=["rows of 256", "rows of 64"])
@pytest.mark.parametrize(
    ("type", "error"),
    [("q6_k", 0.02), ("q5_k_m", 0.045), ("q4_k_m", 0.08), ("iq4_xs", 0.08), ("q3_k_m", 0.16)],
)
def test_mixtures_are_rounded_by_llama_cpp_and_read_back(
    type: str, error: float, hidden: int, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: K-quants are NOT tested")
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "head_dim": 16}
    model = families.make_family("llama", tmp_path / "model", families.byte_level_tokenizer(), **sizes)

    read, live = read_back(model, tmp_path / "model.gguf", GgufType(type)), load(model)

    for found, original in zip(read.model.layers, live.model.layers, strict=True):
        for name in ("q_proj", "k_proj"):
            rounded, exact = (getattr(layer.self_attn, name).weight for layer in (found, original))
            assert 0 < (rounded - exact).norm() / exact.norm() < error
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert any(name.endswith(("_K", "_XS")) for name in types) == (hidden == 256)


def test_llama_3_scales_its_rope_by_a_tensor(tmp_path: Path) -> None:
    model = families.make_family(
        "llama", tmp_path / "model", families.byte_level_tokenizer(), rope_parameters=families.LLAMA3_ROPE
    )

    reader = gguf.GGUFReader(write_gguf_of(model, tmp_path / "model.gguf"))

    [factors] = [tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight"]
    assert factors[0] == pytest.approx(1.0)
    assert factors[-1] == pytest.approx(8.0)


def test_an_unknown_family_and_scaling_are_refused(tmp_path: Path) -> None:
    tokenizer = families.byte_level_tokenizer()
    model = families.make_family(
        "llama",
        tmp_path / "model",
        tokenizer,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    )
    with pytest.raises(GgufFamilyUnknown, match="dynamic"):
        write_gguf_of(model, tmp_path / "model.gguf")
    config = read_shape(model).config
    config.model_type = "mamba"
    with pytest.raises(GgufFamilyUnknown, match="mamba"):
        GgufLayout.of(config)
    assert not (tmp_path / "model.gguf").exists()


def test_the_file_holds_tokens_their_types_and_the_chat_template(tmp_path: Path) -> None:
    tokenizer = families.sentencepiece_tokenizer()
    model = families.make_family("llama", tmp_path / "model", tokenizer, vocab_size=len(tokenizer) + 3)

    reader = gguf.GGUFReader(write_gguf_of(model, tmp_path / "model.gguf"))

    def value(key: str) -> object:
        field = reader.get_field(key)
        assert field is not None, key
        return field.contents()

    tokens = value("tokenizer.ggml.tokens")
    kinds = value("tokenizer.ggml.token_type")
    assert isinstance(tokens, list)
    assert isinstance(kinds, list)
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert tokens[-1] == f"[PAD{len(tokenizer) + 2}]"
    assert [kinds[n] for n in (0, 1, 3, len(tokens) - 1)] == [2, 3, 6, 5]
    assert value("tokenizer.ggml.model") == "llama"
    assert value("tokenizer.ggml.eos_token_id") == 2
    assert value("tokenizer.chat_template") == tokenizer.chat_template


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([pre_tokenizers.ByteLevel(add_prefix_space=False)], "gpt-2"),
        (
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ],
            "smollm",
        ),
    ],
)
def test_known_pre_tokenizers_have_a_name(steps: list[pre_tokenizers.PreTokenizer], name: str) -> None:
    tokenizer = families.byte_level_tokenizer(pre_tokenizers.Sequence(steps))

    assert read_vocabulary(tokenizer, len(tokenizer)).pre == name


def test_an_unknown_pre_tokenizer_is_refused() -> None:
    split = pre_tokenizers.Split(Regex(r"\d\d"), "isolated")
    steps = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(use_regex=False)])
    tokenizer = families.byte_level_tokenizer(steps)

    with pytest.raises(TokenizerUnfit, match="splits text"):
        read_vocabulary(tokenizer, len(tokenizer))


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 32}}], ids=str)
def test_a_lora_file_applied_to_a_gguf_base_equals_the_live_adapter(
    options: dict[str, object], tmp_path: Path, make_adapter: MakeAdapter
) -> None:
    model = families.make_family("llama", tmp_path / "model", families.byte_level_tokenizer())
    adapter = make_adapter(on=model, **options)
    layout = GgufLayout.of(read_shape(model).config)
    write_gguf_lora(read_adapter(adapter), tmp_path / "lora.gguf", layout=layout, title="tiny", type="f32")
    lora = LoraFile(tmp_path / "lora.gguf")

    write_gguf(
        SafetensorsCheckpoint(model),
        tmp_path / "applied.gguf",
        layout=layout,
        tokenizer=description.load_tokenizer(model),
        title="tiny",
        type=GgufType.F16,
        change=lora.apply,
    )

    live = verification.load_live(
        model, adapter, base_model.QuantizationSpec(load_in_4bit=False), torch.float32
    )
    found = logits(verification.load_gguf(tmp_path / "applied.gguf", layout.run_as, torch.float32))
    assert lora.applied == lora.targets
    assert (found - logits(live)).abs().max() / logits(live).abs().max() < 1e-2
