"""Models, tokenizers and adapters that a format can't hold, their errors, and unusual ones it can hold."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from app.core.specs.export import export_spec_adapter
from app.core.specs.job import QuantizationSpec
from tests.worker.exports import families
from tests.worker.exports.conftest import MakeAdapter
from worker.exports.reports import Exported, ExportFailed, ExportRequest
from worker.exports.run import run

Export = Callable[..., Exported | ExportFailed]
GGUF = {"format": "gguf", "type": "f16"}


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """A function that exports an adapter on a given base model."""

    def export_now(base: Path, adapter: Path, **spec: Any) -> Exported | ExportFailed:
        attempt = tmp_path / f"export-{len(list(tmp_path.glob('export-*')))}" / "attempt"
        attempt.mkdir(parents=True)
        request = ExportRequest(
            spec=export_spec_adapter.validate_python(spec),
            adapter_id="ad_0000000000000000",
            adapter_name="helper",
            adapter_folder=adapter,
            base_model=base.name,
            quantization=QuantizationSpec(load_in_4bit=False),
            models_folder=base.parent,
            folder=attempt,
            merged=attempt.parent / "merged",
        )
        ended = run(request, lambda report: None)
        if isinstance(ended, ExportFailed):
            assert list(attempt.parent.rglob("*")) == [attempt]
        return ended

    return export_now


def refused(ended: Exported | ExportFailed) -> tuple[str, str, str]:
    assert isinstance(ended, ExportFailed), ended
    return ended.code, ended.message, ended.hint or ""


def tensors_of(ended: Exported | ExportFailed) -> set[str]:
    assert isinstance(ended, Exported), ended
    return {tensor.name for tensor in gguf.GGUFReader(ended.folder / "helper-f16.gguf").tensors}


def make_gpt2(folder: Path) -> Path:
    tokenizer = families.byte_level_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_embd=32,
        n_layer=1,
        n_head=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_family_that_gguf_does_not_know_is_named_and_merged(
    export: Export, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    base = make_gpt2(tmp_path / "gpt2")
    adapter = make_adapter(on=base, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)

    for spec in (GGUF, {"format": "gguf_lora"}):
        code, message, hint = refused(export(base, adapter, **spec))
        assert (code, message) == (
            "gguf_family_unknown",
            "Models of the type 'gpt2' can't be written as GGUF here.",
        )
        assert "Known: gemma2, gemma3_text, llama, mistral, phi3, qwen2, qwen3." in hint
    assert isinstance(export(base, adapter, format="merged"), Exported)


def test_tied_embeddings_stay_one_tensor_until_one_of_them_is_trained(
    export: Export, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    base = families.make_family("tied-llama", tmp_path / "tied", families.byte_level_tokenizer())

    tied = tensors_of(export(base, make_adapter(on=base), **GGUF))
    whole = make_adapter(tmp_path / "whole", on=base, modules_to_save=["embed_tokens"])
    parted = tensors_of(export(base, whole, **GGUF))

    assert parted - tied == {"output.weight"}


def test_parted_embeddings_are_refused_where_the_architecture_has_one(
    export: Export, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    base = families.make_family("gemma2", tmp_path / "gemma", families.byte_level_tokenizer())
    adapter = make_adapter(on=base, modules_to_save=["lm_head"])

    code, message, hint = refused(export(base, adapter, **GGUF))

    assert code == "gguf_family_unknown"
    assert "its output layer is not its embedding" in message
    assert "merged" in hint


@pytest.mark.parametrize(
    ("module", "words"), [("embed_tokens", "more than linear layers"), ("lm_head", "output layer (lm_head)")]
)
def test_an_adapter_on_embeddings_is_refused(
    export: Export, make_adapter: MakeAdapter, base: Path, module: str, words: str
) -> None:
    code, message, hint = refused(
        export(base, make_adapter(target_modules=["q_proj", module]), format="merged")
    )

    assert (code, words in message) == ("export_unsupported", True)
    assert "modules_to_save can" in hint


def test_a_base_model_of_quantized_weights_is_refused(
    export: Export, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    base = families.make_family("llama", tmp_path / "packed", families.byte_level_tokenizer())
    adapter = make_adapter(on=base)
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config))

    code, message, hint = refused(export(base, adapter, format="merged"))

    assert (code, "'packed' holds quantized weights" in message) == ("export_unsupported", True)
    assert "16-bit" in hint


def test_added_tokens_that_have_rows_are_exported(
    export: Export, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    tokenizer = families.byte_level_tokenizer()
    rows = len(tokenizer) + 5
    base = families.make_family("llama", tmp_path / "roomy", tokenizer, vocab_size=rows)
    adapter = make_adapter(on=base)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(adapter)

    ended = export(base, adapter, **GGUF)

    assert isinstance(ended, Exported), ended
    reader = gguf.GGUFReader(ended.folder / "helper-f16.gguf")
    keys = [reader.get_field(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type")]
    tokens, kinds = (key.contents() for key in keys if key is not None)
    number = tokenizer.convert_tokens_to_ids("<new>")
    assert (tokens[number], kinds[number]) == ("<new>", gguf.TokenType.USER_DEFINED)
    assert len(tokens) == rows
    merged = export(base, adapter, format="merged")
    assert isinstance(merged, Exported)
    assert AutoTokenizer.from_pretrained(merged.folder)("<new>").input_ids == [number]


def test_a_tokenizer_that_gguf_has_no_kind_for_is_refused(
    export: Export, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    base = families.make_family("llama", tmp_path / "llama", families.byte_level_tokenizer())
    adapter = make_adapter(on=base)
    pieces = [("<unk>", 0.0), ("a", -1.0), ("b", -2.0)]
    unigram = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.Unigram(pieces, 0)), unk_token="<unk>"
    )
    unigram.save_pretrained(adapter)

    code, message, hint = refused(export(base, adapter, **GGUF))

    assert (code, message) == (
        "tokenizer_unfit",
        "The tokenizer can't be written as GGUF: it is a Unigram tokenizer, not BPE.",
    )
    assert "merged" in hint
