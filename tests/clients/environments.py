"""Environments of clients: one for each Python client, one for those of Node, cached between runs.

`python -m tests.clients.environments` resolves the versions anew: of Python into `python/requirements/`, of
Node into `node/package-lock.json`.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

from tests.clients.clients import CLIENTS, FOLDER, NODE_FOLDER, Client

ROOT = FOLDER.parents[1]
REQUIREMENTS = FOLDER / "python" / "requirements"
CACHE = ROOT / ".clients"  # ignored by git
UV = (sys.executable, "-m", "uv")


def command(client: Client) -> list[str]:
    """The command that runs the client's script; the environment of a Python client is made first."""
    if client.is_node:
        return ["node", str(NODE_FOLDER / client.script)]
    return [str(make_python_environment(client)), str(FOLDER / "python" / client.script)]


def make_python_environment(client: Client) -> Path:
    """An environment that holds exactly the client's requirements. Returns its interpreter."""
    folder = CACHE / client.key
    interpreter = folder / "bin" / "python"
    run_command(*UV, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder))
    requirements = REQUIREMENTS / f"{client.key}.txt"
    run_command(*UV, "pip", "sync", "--quiet", "--python", str(interpreter), str(requirements))
    return interpreter


def make_node_environment() -> None:
    """The packages of package-lock.json, in `node_modules`."""
    stamp = NODE_FOLDER / "node_modules" / ".installed"
    digest = hashlib.sha256((NODE_FOLDER / "package-lock.json").read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return
    run_command("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", folder=NODE_FOLDER)
    stamp.write_text(digest)


def resolve() -> None:
    """Write the versions of all packages that the clients need. Lock files name no registry."""
    for client in CLIENTS:
        if client.is_node:
            continue
        options = ("--universal", "--python-version", "3.11", "--no-annotate", "--no-header", "--upgrade")
        output = REQUIREMENTS / f"{client.key}.txt"
        output.parent.mkdir(exist_ok=True)
        packages = "\n".join(client.packages)
        run_command(
            *UV, "pip", "compile", "-", *options, "--quiet", "--output-file", str(output), stdin=packages
        )
    run_command(
        "npm", "install", "--package-lock-only", "--omit-lockfile-registry-resolved", folder=NODE_FOLDER
    )


def run_command(*command: str, folder: Path = ROOT, stdin: str = "") -> None:
    """Run a command; what it printed is in the AssertionError where it fails."""
    done = subprocess.run(command, cwd=folder, input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stderr}{done.stdout}"


if __name__ == "__main__":
    resolve()
