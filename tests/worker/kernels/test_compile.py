"""Kernels compile for an H100 where there is none: the interpreter takes more than the compiler does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from worker import kernels


@pytest.mark.slow
def test_every_kernel_compiles_as_it_is_launched(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found = subprocess.run(
        [sys.executable, "-m", f"{__package__}.compile_all", "90"],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )

    assert found.returncode == 0, found.stderr[-3000:]
    sources = [path.read_text() for path in Path(kernels.__path__[0]).rglob("*.py")]
    names = {name for source in sources for name in re.findall(r"^def (\w*kernel)\(", source, re.MULTILINE)}
    assert set(found.stdout.split()) == names
