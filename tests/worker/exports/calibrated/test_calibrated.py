"""AWQ and GPTQ without llm-compressor: specs, refusals before the merge, and the process that rounds."""

import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from app.core.errors.exports import ExportFailure, ExportUnsupported, QuantizerMissing
from app.core.errors.jobs import DiskFull, OutOfMemory
from app.core.specs.export import CalibratedSpec, export_spec_adapter
from tests.small_disk import mounted
from tests.worker.exports.conftest import MakeAdapter, failed
from worker.exports.calibrated import compressor, groups
from worker.exports.calibrated.compressor import Compressor
from worker.exports.calibrated.program import Request
from worker.exports.merged import linear_layers
from worker.exports.merged.checkpoint import TensorSpec
from worker.exports.reports import Exported, ExportFailed, ExportRequest
from worker.exports.run import run

Export = Callable[..., Exported | ExportFailed]

REQUEST: Request = {
    "method": "gptq",
    "model": "/model",
    "output": "/output",
    "rows": "/rows",
    "group_size": 32,
    "ignore": ["lm_head"],
    "max_shard_bytes": 1_000_000,
}


# Runs the program with a compression that never ends.
_ENDLESS = """
import runpy, sys, threading
del sys.argv[0]
main = runpy.run_path(sys.argv[0])["main"]
def compress(request, report):
    report(progress=0.5)
    threading.Event().wait()
main.__globals__["_compress"] = compress
main()
"""


@pytest.fixture
def request_of(
    make_request: Callable[..., ExportRequest], make_adapter: MakeAdapter
) -> Callable[..., ExportRequest]:
    def make(python: Path | None, *, dataset: Path | None, **spec: Any) -> ExportRequest:
        made = make_request(make_adapter(), **{"format": "gptq", **spec})
        return made.model_copy(update={"dataset": dataset, "llm_compressor": python})

    return make


def interpreter(folder: Path, script: str) -> Path:
    """Something that is called as the interpreter is, and runs `script` instead of the program."""
    (folder / "script.py").write_text(script)
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {folder / "script.py"} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize("format", ["awq", "gptq"])
def test_a_spec_names_the_method_and_how_much_it_is_calibrated_on(format: str) -> None:
    spec = export_spec_adapter.validate_python({"format": format, "calibration_tokens": 1000})

    assert isinstance(spec, CalibratedSpec)
    assert (spec.format, spec.calibration_tokens, spec.base) == (format, 1000, "dequantized")


@pytest.mark.parametrize("spec", [{"calibration_tokens": 100}, {"group_size": 128}, {"type": "q4_k_m"}])
def test_options_that_make_no_sense_are_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        export_spec_adapter.validate_python({"format": "awq", **spec})


def test_without_llm_compressor_nothing_is_merged(
    request_of: Callable[..., ExportRequest], dataset: Path, tmp_path: Path
) -> None:
    request = request_of(interpreter(tmp_path, "print('null')"), dataset=dataset)

    ended = failed(run(request, lambda report: None))

    assert ended.code == "quantizer_missing"
    assert f"llm-compressor, which {request.llm_compressor} does not have" in ended.message
    assert "pip install 'llmcompressor>=" in (ended.hint or "")
    assert "TUNESMITH_LLM_COMPRESSOR_PYTHON" in (ended.hint or "")
    assert not request.merged.exists()


def test_the_workers_own_interpreter_is_asked_where_no_other_is_set() -> None:
    assert Compressor.of(None, None).python == Path(sys.executable)
    with pytest.raises(QuantizerMissing, match="does not have"):
        Compressor.of(None, None).check()


@pytest.mark.parametrize(
    ("script", "words"), [("print('\"0.13.1\"')", "0.13.1 is too old"), ("print('?')", "does not run")]
)
def test_an_environment_that_can_not_be_used_is_named(script: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(QuantizerMissing, match=words):
        Compressor(interpreter(tmp_path, script)).check()


def test_an_interpreter_that_is_not_there_is_named() -> None:
    with pytest.raises(QuantizerMissing, match="/no/python, does not run: "):
        Compressor(Path("/no/python")).check()


def test_without_rows_nothing_is_merged(request_of: Callable[..., ExportRequest], tmp_path: Path) -> None:
    request = request_of(interpreter(tmp_path, "print('\"0.14.0\"')"), dataset=None, format="awq")

    ended = failed(run(request, lambda report: None))

    assert ended.code == "export_unsupported"
    assert ended.message.startswith(
        "AWQ is calibrated on rows that the adapter was trained on, and there are none"
    )
    assert not request.merged.exists()


def test_a_failure_of_llm_compressor_ends_the_export_and_the_merge_stays(
    request_of: Callable[..., ExportRequest], dataset: Path, tmp_path: Path
) -> None:
    script = (
        "import sys\nprint('\"0.14.0\"' if sys.argv[-1] == '--check' else '{\"error\": \"ValueError: no\"}')"
    )
    request = request_of(interpreter(tmp_path, script), dataset=dataset)

    ended = failed(run(request, lambda report: None))

    assert (ended.code, ended.message) == ("export_failed", "llm-compressor failed: ValueError: no.")
    assert request.merged.is_dir()
    rows = [json.loads(line) for line in (request.folder / "calibration.jsonl").read_text().splitlines()]
    assert len(rows) == 29
    assert all(isinstance(token, int) for row in rows for token in row)
    asked = json.loads((request.folder / "compression.json").read_text())
    assert (asked["method"], asked["group_size"], asked["ignore"]) == ("gptq", 64, ["lm_head"])


def test_progress_is_passed_on_and_the_program_sees_the_gpu_it_may_use(tmp_path: Path) -> None:
    script = (
        "import json, os, sys\n"
        "assert json.load(open(sys.argv[-1]))['method'] == 'gptq' and sys.argv[1] == '-I'\n"
        "assert os.environ['CUDA_VISIBLE_DEVICES'] == 'GPU-7'\n"
        "print('{\"progress\": 0.5}'); print('{\"progress\": 1.0}'); print('{\"done\": true}')"
    )
    found: list[float] = []

    Compressor(interpreter(tmp_path, script), gpu="GPU-7").run(REQUEST, tmp_path, found.append)

    assert found == [0.5, 1.0]


def test_a_program_that_dies_is_told_with_its_status(tmp_path: Path) -> None:
    died = Compressor(
        interpreter(tmp_path, "import os; print('{\"progress\": 1.0}', flush=True); os._exit(9)")
    )

    with pytest.raises(ExportFailure, match="ended with status 9"):
        died.run(REQUEST, tmp_path, lambda progress: None)


def test_a_disk_that_fills_up_has_its_own_code(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "try:\n"
        "    with open(os.path.dirname(sys.argv[-1]) + '/model', 'wb', 0) as file:\n"
        "        while True: file.write(bytes(1 << 20))\n"
        'except OSError: print(\'{"error": "OSError: no"}\')'
    )
    with mounted(tmp_path / "disk", 10) as is_mounted:
        if not is_mounted:
            pytest.skip("mounting a small file system needs root: the full disk is NOT tested")
        with pytest.raises(DiskFull):
            Compressor(interpreter(tmp_path, script)).run(REQUEST, tmp_path / "disk", lambda progress: None)


def test_a_lack_of_memory_has_its_own_code(tmp_path: Path) -> None:
    script = 'print(\'{"error": "OutOfMemoryError: no", "is_out_of_memory": true}\')'

    with pytest.raises(OutOfMemory, match="OutOfMemoryError: no"):
        Compressor(interpreter(tmp_path, script)).run(REQUEST, tmp_path, lambda progress: None)


def test_the_program_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    (path := tmp_path / "request.json").write_text(json.dumps(REQUEST))
    command = [sys.executable, "-I", "-c", _ENDLESS, str(compressor._PROGRAM), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"progress": 0.5}
        assert process.poll() is None

        process.communicate(timeout=60)  # closes its standard input

    assert process.returncode == 1


@pytest.mark.parametrize(("widths", "size"), [((4096, 11008), 128), ((576, 1536), 64), ((64, 96), 32)])
def test_groups_are_as_large_as_all_layers_allow(widths: tuple[int, ...], size: int) -> None:
    tensors = [TensorSpec(f"l{width}.weight", (8, width)) for width in widths]

    assert groups.find_group_size(tensors, {tensor.name for tensor in tensors}, "AWQ") == size


def test_a_layer_that_no_group_fits_is_named() -> None:
    tensors = [TensorSpec("up.weight", (8, 64)), TensorSpec("down.weight", (8, 100))]

    with pytest.raises(ExportUnsupported, match=r"AWQ has .* down\.weight has 100 inputs"):
        groups.find_group_size(tensors, {"up.weight", "down.weight"}, "AWQ")


def test_the_size_counts_half_a_byte_a_weight_and_the_scales() -> None:
    tensors = [TensorSpec("up.weight", (8, 64)), TensorSpec("norm.weight", (64,))]

    assert groups.count_bytes(tensors, {"up.weight"}, 32, torch.bfloat16) == 8 * 64 // 2 + 8 * 2 * 2 + 64 * 2


def test_without_compressed_tensors_nothing_is_merged(
    request_of: Callable[..., ExportRequest], dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_layers, "_PACKAGE", "no_such_package")
    request = request_of(None, dataset=dataset, format="awq")

    ended = failed(run(request, lambda report: None))

    assert (ended.code, ended.message) == (
        "quantizer_missing",
        "AWQ files are read back with compressed-tensors, which is not installed.",
    )
    assert not request.merged.exists()
