"""The files in llama.cpp itself, where it is installed: it must be built from source (docs/exports.md)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.core.specs.job import QuantizationSpec
from tests.worker.exports import families
from tests.worker.exports.conftest import MakeAdapter, write_gguf_of
from worker.exports import verification
from worker.exports.adapter_weights import read_adapter
from worker.exports.gguf.families import GgufLayout
from worker.exports.gguf.lora import write_gguf_lora
from worker.exports.merge import read_shape

llama_cpp = pytest.importorskip(
    "llama_cpp", reason="llama-cpp-python is not installed: no file was tried with llama.cpp itself"
)
# Longer than the window of the Gemma models.
IDS = [1, *(4 + (37 * n + n * n // 3) % 300 for n in range(99))]
TEXTS = [
    *(
        "How do I cancel a job?",
        "  two  spaces\n\n\nlines\t tab ",
        "naïve café e\u0301",
        "日本語 한국어 العربية",
    ),
    *(
        "😀 👩‍👩‍👧 🇩🇪",
        "12345 1,000.5",
        "def f(x):\n    return x  # it's\n",
        "a\u00a0b\u3000c",
        "<s>x</s> <unk>",
    ),
]


def logits(path: Path, **options: Any) -> torch.Tensor:
    model = llama_cpp.Llama(str(path), n_ctx=128, n_threads=1, logits_all=True, verbose=False, **options)
    model.eval(IDS)
    return torch.from_numpy(np.array(model.scores[: len(IDS)]))


def difference(found: torch.Tensor, model: torch.nn.Module) -> float:
    """The largest difference of the logits, as a share of the largest logit."""
    with torch.inference_mode():
        live = model(input_ids=torch.tensor([IDS])).logits[0]
    return ((found - live).abs().max() / live.abs().max()).item()


@pytest.mark.parametrize("family", families.CONFIGS)
def test_llama_cpp_computes_what_transformers_computes(family: str, tmp_path: Path) -> None:
    model = families.make_family(family, tmp_path / "model", families.byte_level_tokenizer())

    found = logits(write_gguf_of(model, tmp_path / "model.gguf"))

    assert difference(found, verification.load_safetensors(model, torch.float32)) < 1e-2


def test_llama_cpp_scales_rope_as_llama_3_does(tmp_path: Path) -> None:
    tokenizer = families.byte_level_tokenizer()
    model = families.make_family("llama", tmp_path / "model", tokenizer, rope_parameters=families.LLAMA3_ROPE)

    found = logits(write_gguf_of(model, tmp_path / "model.gguf"))

    assert difference(found, verification.load_safetensors(model, torch.float32)) < 1e-2


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "phi3"])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=str)
def test_llama_cpp_applies_a_lora_file_as_peft_does(
    family: str, options: dict[str, Any], tmp_path: Path, make_adapter: MakeAdapter
) -> None:
    model = families.make_family(family, tmp_path / "model", families.byte_level_tokenizer())
    adapter = make_adapter(on=model, **options)
    layout = GgufLayout.of(read_shape(model).config)
    write_gguf_lora(read_adapter(adapter), tmp_path / "lora.gguf", layout=layout, title="tiny", type="f32")

    found = logits(write_gguf_of(model, tmp_path / "model.gguf"), lora_path=str(tmp_path / "lora.gguf"))

    live = verification.load_live(model, adapter, QuantizationSpec(load_in_4bit=False), torch.float32)
    assert difference(found, live) < 1e-2
    with live.disable_adapter():
        assert difference(found, live) > 0.05


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_llama_cpp_splits_text_as_the_tokenizer_does(kind: str, tmp_path: Path) -> None:
    tokenizer = getattr(families, f"{kind}_tokenizer")()
    model = families.make_family("llama", tmp_path / "model", tokenizer)

    found = llama_cpp.Llama(
        str(write_gguf_of(model, tmp_path / "model.gguf")), vocab_only=True, verbose=False
    )

    for text in TEXTS:
        ids = found.tokenize(text.encode(), add_bos=False, special=True)
        assert ids == tokenizer(text, add_special_tokens=False).input_ids, text
    assert (found.token_bos(), found.token_eos()) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
