"""The files in llama.cpp's own server, which the package xllamacpp holds."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from app.core.specs.export import GgufType
from app.core.specs.job import QuantizationSpec
from tests.worker.exports import families
from tests.worker.exports.conftest import MakeAdapter, write_gguf_of
from worker.exports import verification
from worker.exports.gguf.families import GgufLayout
from worker.exports.gguf.lora import write_gguf_lora
from worker.exports.merged.adapter_weights import read_adapter
from worker.exports.merged.merge import read_shape

xllamacpp = pytest.importorskip(
    "xllamacpp", reason="xllamacpp is not installed: no file was tried with llama.cpp itself"
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


@contextmanager
def serving(path: Path, *, lora: Path | None = None) -> Iterator[httpx.Client]:
    """A client of llama.cpp's server with one model."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup = 256, 1, False
    params.cpuparams.n_threads = 1
    if lora is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
    server = xllamacpp.Server(params)
    with httpx.Client(base_url=server.listening_address, timeout=60) as client:
        yield client
    del server


def next_token(client: httpx.Client, ids: list[int], vocabulary: int) -> torch.Tensor:
    """The logarithms of the next token's probabilities, before any bias or sampling.

    The answer has them only where the token is text of its own, so a letter is sampled.
    """
    letter = client.post("/tokenize", json={"content": "a"}).json()["tokens"][-1]
    body = {"prompt": ids, "n_predict": 1, "n_probs": vocabulary, "logit_bias": [[letter, 1000]]}
    answer = client.post("/v1/completions", json=body).raise_for_status().json()
    [position] = answer["choices"][0]["logprobs"]["content"]
    found = torch.full((vocabulary,), -math.inf)
    for token in position["top_logprobs"]:
        found[token["id"]] = token["logprob"]
    return found


def divergence(client: httpx.Client, model: torch.nn.Module) -> float:
    """The largest KL divergence of the next token after prompts of several lengths, in nats."""
    worst = 0.0
    for length in (3, 40, len(IDS)):
        with torch.inference_mode():
            live = model(input_ids=torch.tensor([IDS[:length]])).logits[0, -1].log_softmax(-1)
        found = next_token(client, IDS[:length], len(live))
        worst = max(worst, (live.exp() * (live - found)).sum().item())
    return worst


@pytest.mark.parametrize("family", families.CONFIGS)
def test_llama_cpp_computes_what_transformers_computes(family: str, tmp_path: Path) -> None:
    model = families.make_family(family, tmp_path / "model", families.byte_level_tokenizer())

    with serving(write_gguf_of(model, tmp_path / "model.gguf")) as client:
        assert divergence(client, verification.load_safetensors(model, torch.float32)) < 1e-4


def test_llama_cpp_scales_rope_as_llama_3_does(tmp_path: Path) -> None:
    tokenizer = families.byte_level_tokenizer()
    model = families.make_family("llama", tmp_path / "model", tokenizer, rope_parameters=families.LLAMA3_ROPE)

    with serving(write_gguf_of(model, tmp_path / "model.gguf")) as client:
        assert divergence(client, verification.load_safetensors(model, torch.float32)) < 1e-4


@pytest.mark.parametrize("type", ["q6_k", "q5_k_m", "q4_k_m", "iq4_xs", "q3_k_m"])
def test_llama_cpp_reads_its_mixtures_as_the_gguf_package_does(type: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 320, "head_dim": 64}
    model = families.make_family("llama", tmp_path / "model", families.byte_level_tokenizer(), **sizes)
    path = write_gguf_of(model, tmp_path / "model.gguf", GgufType(type))

    read = verification.load_gguf(path, GgufLayout.of(read_shape(model).config).run_as, torch.float32)

    # llama.cpp rounds activations to 8 bits.
    with serving(path) as client:
        assert divergence(client, read) < 0.05


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "phi3"])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=str)
def test_llama_cpp_applies_a_lora_file_as_peft_does(
    family: str, options: dict[str, Any], tmp_path: Path, make_adapter: MakeAdapter
) -> None:
    model = families.make_family(family, tmp_path / "model", families.byte_level_tokenizer())
    adapter = make_adapter(on=model, **options)
    layout = GgufLayout.of(read_shape(model).config)
    write_gguf_lora(read_adapter(adapter), tmp_path / "lora.gguf", layout=layout, title="tiny", type="f32")
    path = write_gguf_of(model, tmp_path / "model.gguf")
    live = verification.load_live(model, adapter, QuantizationSpec(load_in_4bit=False), torch.float32)

    with serving(path, lora=tmp_path / "lora.gguf") as client:
        assert divergence(client, live) < 1e-3
        with live.disable_adapter():
            assert divergence(client, live) > 0.01


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_llama_cpp_splits_text_as_the_tokenizer_does(kind: str, tmp_path: Path) -> None:
    tokenizer = getattr(families, f"{kind}_tokenizer")()
    model = families.make_family("llama", tmp_path / "model", tokenizer)

    with serving(write_gguf_of(model, tmp_path / "model.gguf")) as client:
        for text in TEXTS:
            answer = client.post("/tokenize", json={"content": text, "add_special": False})
            assert answer.json()["tokens"] == tokenizer(text, add_special_tokens=False).input_ids, text
