"""Kernels compile for an H100 where there is none: the interpreter takes more than the compiler does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from worker import kernels


def compile_for_h100(module: str, cache: Path) -> str:
    """What a module of this package prints that compiles kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found = subprocess.run(
        [sys.executable, "-m", f"{__package__}.{module}", "90"],
        env={**environment, "TRITON_CACHE_DIR": str(cache), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


@pytest.mark.slow
def test_every_kernel_compiles_as_it_is_launched(tmp_path: Path) -> None:
    compiled = compile_for_h100("compile_all", tmp_path)

    sources = [path.read_text() for path in Path(kernels.__path__[0]).rglob("*.py")]
    names = {name for source in sources for name in re.findall(r"^def (\w*kernel)\(", source, re.MULTILINE)}
    assert set(compiled.split()) == names


@pytest.mark.slow
def test_a_kernel_that_was_compiled_ahead_or_for_another_batch_is_not_compiled_again(tmp_path: Path) -> None:
    new, *again = compile_for_h100("compile_again", tmp_path).split()

    assert new == "1"
    assert again == ["0"] * 5
