"""An environment with llm-compressor, and the development environment's torch: made in seconds."""

import sys
import sysconfig
from pathlib import Path

from tests.clients.environments import CACHE, UV, run_command

REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def make_environment() -> Path:
    """The environment, cached between runs. Returns its interpreter."""
    folder = CACHE / "llm-compressor"
    interpreter = folder / "bin" / "python"
    run_command(*UV, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder))
    options = ("--quiet", "--no-deps", "--python", str(interpreter))
    run_command(*UV, "pip", "install", *options, "--requirement", str(REQUIREMENTS))
    (packages,) = folder.glob("lib/python*/site-packages")
    # What this environment lacks is taken from that of the tests.
    (packages / "development.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return interpreter
