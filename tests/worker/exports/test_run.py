"""The exporting child's results and errors, run in this process on the tiny model."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from app.core.specs.export import export_spec_adapter
from app.core.specs.job import QuantizationSpec
from tests.worker.exports.conftest import MakeAdapter, failed, succeeded
from worker.exports import disk, verification
from worker.exports.reports import Exported, ExportFailed, ExportRequest
from worker.exports.run import run
from worker.models import base_model
from worker.models.device import find_device
from worker.models.files.fingerprint import take_fingerprint

Export = Callable[..., Exported | ExportFailed]


@pytest.fixture
def export(make_request: Callable[..., ExportRequest], make_adapter: MakeAdapter) -> Export:
    def export_now(*, adapter: dict[str, Any] | None = None, **spec: Any) -> Exported | ExportFailed:
        return run(make_request(make_adapter(**(adapter or {})), **spec), lambda report: None)

    return export_now


def test_a_merged_model_is_a_folder_that_anyone_loads(export: Export) -> None:
    ended = succeeded(export(format="merged"))

    model = AutoModelForCausalLM.from_pretrained(ended.folder)
    tokenizer = AutoTokenizer.from_pretrained(ended.folder)
    assert model.dtype is torch.bfloat16
    assert tokenizer.chat_template
    assert "quantized to 4 bits and dequantized" in (ended.folder / "README.md").read_text()
    assert ended.agreement.mean_kl < 1e-3
    assert {"model.safetensors", "config.json", "README.md"} <= {file.name for file in ended.files}


def test_an_original_base_is_said_to_be_one(export: Export) -> None:
    ended = succeeded(export(format="merged", base="original"))

    assert "original" in ended.notes[0]
    assert not ended.agreement.threshold.must_keep_adapter


def test_pickles_are_loaded_as_weights_only(export: Export) -> None:
    ended = succeeded(export(format="pytorch_bin", max_shard_bytes=1_000_000))

    weights = torch.load(ended.folder / "pytorch_model.bin", weights_only=True)
    assert "model.embed_tokens.weight" in weights
    assert not list(ended.folder.glob("*.safetensors"))


@pytest.mark.parametrize("type", ["f16", "q8_0"])
def test_a_gguf_file_is_one_file_a_card_and_a_modelfile(export: Export, type: str) -> None:
    ended = succeeded(export(format="gguf", type=type))

    assert [file.name for file in ended.files] == ["Modelfile", "README.md", f"helper-{type}.gguf"]
    assert ended.agreement.answers_equal >= 0.75


def test_a_lora_file_is_verified_on_a_gguf_base(export: Export) -> None:
    ended = succeeded(export(format="gguf_lora"))

    assert [file.name for file in ended.files] == ["helper-lora-f16.gguf"]
    assert ended.agreement.mean_kl < 1e-4
    assert ended.agreement.adapter_kl > 1e-3


def test_a_lora_file_says_which_base_it_was_compared_on_and_can_bring_it(export: Export, base: Path) -> None:
    ended = succeeded(export(format="gguf_lora", with_base=True))

    assert [file.name for file in ended.files] == ["Modelfile", "helper-base.gguf", "helper-lora-f16.gguf"]
    lines = (ended.folder / "Modelfile").read_text().splitlines()
    assert [line for line in lines if line.startswith(("FROM", "ADAPTER"))] == [
        "FROM ./helper-base.gguf",
        "ADAPTER ./helper-lora-f16.gguf",
    ]
    assert "trained on 4-bit base weights" in ended.notes[0]
    config = AutoConfig.from_pretrained(ended.folder, gguf_file="helper-base.gguf")
    brought = verification.load_gguf(ended.folder / "helper-base.gguf", config, torch.float32)
    served = base_model.load_for_serving(base, QuantizationSpec(), find_device())
    found, expected = (one.model.layers[1].mlp.down_proj.weight for one in (brought, served))
    torch.testing.assert_close(found, expected, rtol=0.01, atol=1e-4)


def test_an_archive_unpacks_to_a_peft_folder(export: Export, base: Path, tmp_path: Path) -> None:
    ended = succeeded(export(format="adapter"))

    with zipfile.ZipFile(ended.folder / "helper.zip") as archive:
        archive.extractall(tmp_path / "there")
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "there/helper"))
    assert ended.agreement.max_abs_logit_difference == 0


def test_files_that_answer_otherwise_fail_the_export(
    make_request: Callable[..., ExportRequest], make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damage(folder: Path, dtype: torch.dtype) -> Any:
        path = folder / "model.safetensors"
        save_file({name: tensor.flip(0) for name, tensor in load_file(path).items()}, path, {"format": "pt"})
        return load(folder, dtype)

    load = verification.load_safetensors
    monkeypatch.setattr(verification, "load_safetensors", damage)

    ended = failed(run(make_request(make_adapter(), format="merged"), lambda report: None))

    assert ended.code == "export_mismatch"
    assert ended.agreement is not None
    assert ended.agreement.mismatch


def test_a_merge_that_lost_the_adapter_is_a_mismatch(
    make_request: Callable[..., ExportRequest],
    make_adapter: MakeAdapter,
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        verification,
        "load_safetensors",
        lambda folder, dtype: AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval(),
    )

    ended = failed(run(make_request(make_adapter(), format="merged"), lambda report: None))

    assert ended.code == "export_mismatch"


def test_a_failed_conversion_keeps_the_merge_and_a_retry_uses_it(
    make_request: Callable[..., ExportRequest], make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("no such luck")

    adapter = make_adapter()
    request = make_request(adapter, format="gguf")
    with monkeypatch.context() as patch:
        patch.setattr("worker.exports.gguf.export.write_gguf", fail)
        ended = failed(run(request, lambda report: None))
    assert "no such luck" in ended.message
    shutil.rmtree(request.folder)
    request.folder.mkdir()
    monkeypatch.setattr("worker.exports.merged.folder.merge", fail)

    succeeded(run(request, lambda report: None))


def test_a_merge_of_another_kind_is_not_used(
    make_request: Callable[..., ExportRequest], make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter()
    request = make_request(adapter, format="merged")
    first = succeeded(run(request, lambda report: None))
    other = request.model_copy(
        update={"spec": export_spec_adapter.validate_python({"format": "merged", "base": "original"})}
    )

    second = succeeded(run(other, lambda report: None))

    assert {file.sha256 for file in first.files} != {file.sha256 for file in second.files}


@pytest.mark.parametrize(
    ("adapter", "spec", "code", "words"),
    [
        ({"use_dora": True}, {"format": "gguf_lora"}, "export_unsupported", "DoRA"),
        ({"modules_to_save": ["lm_head"]}, {"format": "gguf_lora"}, "export_unsupported", "whole modules"),
        ({"lora_alpha": 10**7}, {"format": "merged", "dtype": "float16"}, "export_unsupported", "float16"),
    ],
    ids=["dora", "modules_to_save", "overflow"],
)
def test_what_a_format_can_not_hold_is_refused(
    export: Export, adapter: dict[str, Any], spec: dict[str, Any], code: str, words: str
) -> None:
    ended = failed(export(adapter=adapter, **spec))

    assert (ended.code, words in ended.message) == (code, True)
    assert ended.hint


def test_modules_trained_whole_go_into_a_gguf_file(export: Export) -> None:
    succeeded(export(adapter={"modules_to_save": ["lm_head"]}, format="gguf", type="f16"))


def test_a_base_model_that_is_gone_is_named(
    make_request: Callable[..., ExportRequest], make_adapter: MakeAdapter
) -> None:
    request = make_request(make_adapter(), format="merged")

    ended = failed(run(request.model_copy(update={"base_model": "gone"}), lambda report: None))

    assert ended.code == "model_missing"
    assert "'gone'" in ended.message
    assert ended.hint


@pytest.mark.parametrize("format", ["adapter", "merged", "gguf_lora"])
def test_other_weights_under_the_base_models_name_are_noticed(
    make_request: Callable[..., ExportRequest],
    make_adapter: MakeAdapter,
    base: Path,
    tmp_path: Path,
    format: str,
) -> None:
    adapter = make_adapter()
    (adapter / "tunesmith.json").write_text(json.dumps({"base_weights": take_fingerprint(base)}))
    changed = shutil.copytree(base, tmp_path / "models" / base.name)
    weights = load_file(changed / "model.safetensors")
    save_file({name: 1.01 * tensor for name, tensor in weights.items()}, changed / "model.safetensors")
    request = make_request(adapter, format=format)

    ended = failed(run(request.model_copy(update={"models_folder": changed.parent}), lambda report: None))

    assert ended.code == "base_model_changed"
    assert f"'{base.name}' has other weights now" in ended.message
    assert list(request.folder.iterdir()) == []


def test_a_tokenizer_with_tokens_that_the_model_lacks_is_refused(
    make_request: Callable[..., ExportRequest], make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter()
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(adapter)

    ended = failed(run(make_request(adapter, format="merged"), lambda report: None))

    assert ended.code == "tokenizer_unfit"
    assert "'<new>'" in ended.message


def test_too_little_disk_is_an_error_before_anything_is_written(
    make_request: Callable[..., ExportRequest], make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = make_request(make_adapter(), format="merged")
    usage = shutil.disk_usage(request.folder)._replace(free=1000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _folder: usage)

    ended = failed(run(request, lambda report: None))

    assert ended.code == "disk_full"
    assert "GB of disk" in ended.message
    assert list(request.folder.iterdir()) == []


def test_too_little_memory_for_verification_is_an_error() -> None:
    assert verification.choose_dtype(1000, 10_000) is torch.float32
    assert verification.choose_dtype(1000, 3000) is torch.bfloat16
    with pytest.raises(verification.NoMemoryForVerification, match="memory"):
        verification.choose_dtype(1000, 1000)


@pytest.mark.parametrize("name", ["ft:owner/model:tunesmith::x1", "../../etc", "bot"])
def test_a_name_never_becomes_a_path(
    make_request: Callable[..., ExportRequest], make_adapter: MakeAdapter, name: str
) -> None:
    request = make_request(make_adapter(), format="adapter").model_copy(update={"adapter_name": name})

    [file] = succeeded(run(request, lambda report: None)).files

    assert "/" not in file.name
    assert not file.name.startswith(".")
