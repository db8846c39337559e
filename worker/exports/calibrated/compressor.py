"""llm-compressor in a process of its own, by the interpreter of the environment that has it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.core.errors.exports import ExportFailure, QuantizerMissing
from app.core.errors.jobs import DiskFull, OutOfMemory
from app.core.storage.disk import has_space
from worker.exports.calibrated.program import Request

_PROGRAM = Path(__file__).with_name("program.py")
# The first release in which AWQ and the rounding are two steps.
_LEAST_RELEASE = (0, 14)
_HINT = (
    "On the worker: python -m venv DIR, DIR/bin/pip install 'llmcompressor>=0.14,<0.15', and set "
    "TUNESMITH_LLM_COMPRESSOR_PYTHON=DIR/bin/python; or, where the worker may have transformers 5.17, "
    "pip install 'tunesmith[worker,llm-compressor]'. Then retry. The formats fp8 and gguf do without it."
)
_ENVIRONMENT = {"TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Compressor:
    """The interpreter that has llm-compressor.

    `gpu` is the one that it may use, as CUDA_VISIBLE_DEVICES takes it; None: it computes on the CPU.
    """

    python: Path
    gpu: str | None = None

    @classmethod
    def of(cls, python: Path | None, gpu: str | None) -> "Compressor":
        """The one of the settings; without an interpreter there, the worker's own."""
        return cls(python or Path(sys.executable), gpu)

    def check(self) -> str:
        """Returns the release of llm-compressor. Raises QuantizerMissing."""
        try:
            done = subprocess.run(self._command("--check"), capture_output=True, text=True, check=True)
            release: str | None = json.loads(done.stdout)
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            raise QuantizerMissing(
                f"The Python interpreter for llm-compressor, {self.python}, does not run: {error}", hint=_HINT
            ) from error
        if release is None:
            raise QuantizerMissing(
                f"AWQ and GPTQ are made by llm-compressor, which {self.python} does not have.", hint=_HINT
            )
        if tuple(int(part) for part in release.split(".")[:2]) < _LEAST_RELEASE:
            raise QuantizerMissing(f"llm-compressor {release} is too old: 0.14 is needed.", hint=_HINT)
        return release

    def run(self, request: Request, folder: Path, announce: Callable[[float], None]) -> None:
        """Write the compressed model to `request["output"]`; `folder` is for a file with the request.

        Raises DiskFull, OutOfMemory, ExportFailure.
        """
        path = folder / "compression.json"
        path.write_text(json.dumps(request))
        # Its standard input stays open until this process ends, however that ends.
        with subprocess.Popen(
            self._command(str(path)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environment(),
            text=True,
        ) as process:
            assert process.stdout is not None
            last: dict[str, Any] = {}
            for line in process.stdout:
                last = json.loads(line)
                if "progress" in last:
                    announce(last["progress"])
        if last.get("done"):
            return
        if not has_space(folder):
            raise DiskFull
        if last.get("is_out_of_memory"):
            raise OutOfMemory(
                f"llm-compressor had not enough memory: {last['error']}", hint="Free some memory, then retry."
            )
        why = last.get("error") or f"its process ended with status {process.returncode}"
        raise ExportFailure(f"llm-compressor failed: {why}.", hint="See the worker's log of exports.")

    def _command(self, argument: str) -> list[str]:
        # Isolated: its own environment's packages alone, and none of this project's folders.
        return [str(self.python), "-I", str(_PROGRAM), argument]

    def _environment(self) -> Mapping[str, str]:
        return {**os.environ, **_ENVIRONMENT, "CUDA_VISIBLE_DEVICES": self.gpu or ""}
