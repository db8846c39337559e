"""The steps of `make demo` on the real small model, with real processes; then every export format.

The adapter learns an eighth of the demo's rows, in steps of half as many.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tests.end_to_end.box import Box, running_box
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ROWS = [json.loads(line) for line in (EXAMPLES / "tunesmith-help.jsonl").read_text().splitlines()]
# The answers that are learned; among them are those to the demo's questions.
ANSWERS = ("/jobs/{id}/cancel", "/jobs/{id}/retry", "GET /jobs. The list", "lease", "/generate with adapter")
LEARNED = [row for row in ROWS if any(part in row["messages"][-1]["content"] for part in ANSWERS)]
QUESTIONS = json.loads((EXAMPLES / "demo-questions.json").read_text())
# Two files from one merge are one export.
FORMATS: dict[str, dict[str, Any]] = {
    "merged": {"format": "merged"},
    "bin": {"format": "pytorch_bin"},
    "gguf": {"format": "gguf", "type": ["f16", "q8_0"]},
    "lora": {"format": "gguf_lora", "with_base": True},
}
# One of an answer's 60 tokens may be as likely as another one; with 8 bits more may differ.
MIN_SHARE = {"merged": 0.97, "bin": 0.97, "f16": 0.97, "lora": 0.97, "q8_0": 0.9}
SPEC = json.loads((EXAMPLES / "demo-job.json").read_text())
NAME, BASE_MODEL = SPEC["name"], SPEC["base_model"]


@dataclass(frozen=True)
class Demo:
    """The box in which the demo's job has succeeded."""

    box: Box
    job: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module")
def models_dir() -> Path:
    """The folder `make demo` fills, so that the model is fetched once."""
    folder = ROOT / "data" / "models"
    subprocess.run(
        [sys.executable, "-m", "worker.models.demo_model", "--models-dir", str(folder)], check=True
    )
    return folder


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Iterator[Demo]:
    """The box and its trained adapter; training takes minutes, so that all tests share it."""
    folder = tmp_path_factory.mktemp("demo")
    with running_box(folder, models_dir) as box:
        box.start_worker()
        training = {**SPEC["training"], "per_device_train_batch_size": 4}
        job_id = box.submit(**{**SPEC, "training": training}, dataset=box.upload(LEARNED))
        job = box.wait_for_state(job_id, "succeeded", "failed", timeout_seconds=1400)
        assert job["state"] == "succeeded", job["error"]
        yield Demo(box, job, folder)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_adapter_learns_what_the_rows_teach(demo: Demo) -> None:
    box, job = demo.box, demo.job
    losses = [event["data"]["loss"] for event in box.events(job["id"], "metrics")]
    assert losses[-1] < losses[0] / 3
    question = "How do I stop a running job?"
    assert all(question != row["messages"][0]["content"] for row in ROWS)
    assert "/cancel" not in box.answer(question, base_model=BASE_MODEL)
    assert "/jobs/{id}/cancel" in box.answer(question, adapter=job["adapter"])


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_format_answers_the_demos_questions_as_the_live_adapter_does(
    demo: Demo, models_dir: Path
) -> None:
    live = {question: demo.box.answer(question, adapter=demo.job["adapter"]) for question in QUESTIONS}
    exports = {name: start_export(demo, spec) for name, spec in FORMATS.items()}

    base = AutoModelForCausalLM.from_pretrained(models_dir / BASE_MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(models_dir / BASE_MODEL)
    for question, said in live.items():
        assert share_of_first_choices(base, tokenizer, question, said) < min(MIN_SHARE.values()), said

    for name, export_id in exports.items():
        folder = download(demo, export_id)  # meanwhile the worker makes the next one
        if name == "merged":
            tokenizer = AutoTokenizer.from_pretrained(folder)
        for kind in FORMATS[name]["type"] if name == "gguf" else [name]:
            model = load(kind, folder)
            for question, said in live.items():
                assert share_of_first_choices(model, tokenizer, question, said) > MIN_SHARE[kind], (
                    kind,
                    said,
                )


def start_export(demo: Demo, spec: dict[str, Any]) -> str:
    """Submit an export of the demo's adapter. Returns its id."""
    sent = demo.box.client.post(f"/adapters/{demo.job['adapter']}/exports", json=spec)
    return str(demo.box.get_good(sent)["id"])


def download(demo: Demo, export_id: str) -> Path:
    """Wait for an export and fetch its files."""

    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = demo.box.get_good(demo.box.client.get(f"/exports/{export_id}"))
        return found if found["state"] in ("succeeded", "failed") else None

    export = wait_for(look, "the export", timeout_seconds=600, step_seconds=0.2)
    assert export["state"] == "succeeded", export["error"]
    folder = demo.folder / export_id
    folder.mkdir()
    for file in export["files"]:
        wanted = {"file": file["name"]}
        with demo.box.client.stream("GET", f"/exports/{export_id}/download", params=wanted) as response:
            assert response.status_code == 200
            with (folder / file["name"]).open("wb") as target:
                for chunk in response.iter_bytes():
                    target.write(chunk)
    return folder


def load(name: str, folder: Path) -> PreTrainedModel:
    """Load the files without Tunesmith's code."""
    if name in ("merged", "bin"):
        kind = {"use_safetensors": name == "merged"}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **kind)
    else:
        file = f"{NAME}-base.gguf" if name == "lora" else f"{NAME}-{name}.gguf"
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    if name == "lora":
        add_lora(model, folder / f"{NAME}-lora-f16.gguf")
    return model.eval()


@torch.no_grad()
def add_lora(model: PreTrainedModel, path: Path) -> None:
    """Apply the LoRA file as llama.cpp's `--lora` does: W + alpha / rank · B A."""
    reader = gguf.GGUFReader(path)
    tensors = {one.name: torch.tensor(gguf.dequantize(one.data, one.tensor_type)) for one in reader.tensors}
    alpha = reader.get_field("adapter.lora.alpha").contents()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    added = 0
    for parameter_name, weight in model.named_parameters():
        name = names.get_name(parameter_name, (".weight",))
        if f"{name}.lora_a" not in tensors:
            continue
        A, B = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        change = alpha / len(A) * B @ A
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            # llama.cpp rotates adjacent pairs, transformers the two halves of a head.
            pairs = change.reshape(-1, model.config.head_dim // 2, 2, change.shape[1])
            change = pairs.transpose(1, 2).reshape(change.shape)
        weight += change
        added += 1
    assert added == len(tensors) / 2


@torch.no_grad()
def share_of_first_choices(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str, said: str
) -> float:
    """The share of the answer's tokens that are the model's most likely ones after the preceding tokens."""
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prompt_ids, said_ids = (
        tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids for text in (prompt, said)
    )
    logits = model(torch.cat([prompt_ids, said_ids], dim=1)).logits
    chosen = logits[0, prompt_ids.shape[1] - 1 : -1].argmax(dim=-1)
    return float((chosen == said_ids[0]).float().mean())
