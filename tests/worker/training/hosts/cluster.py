"""A Ray cluster of nodes on this machine: each a raylet of its own, with its own folder for jobs' files."""

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.waiting import wait_for

_STORE_BYTES = 100 << 20


class RayNode:
    """One node, as `ray start --block` runs it. `data_dir`: where its ranks put a job's files."""

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        folder.mkdir()
        self.data_dir = folder / "data"
        self._log = folder / "log"
        environment = {
            **os.environ,
            "RAY_USAGE_STATS_ENABLED": "0",
            "TUNESMITH_DATA_DIR": str(self.data_dir),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments]
        command += ["--block", "--num-cpus=1", f"--object-store-memory={_STORE_BYTES}"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def is_up(self) -> bool:
        text = self._log.read_text(errors="replace")
        assert self._process.poll() is None, text[-3000:]
        return "Ray runtime started." in text

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """Kill the raylet, as a host that loses its power ends; its ranks end with it."""
        [raylet] = [one for one in self._find_all() if one.name() == "raylet"]
        raylet.kill()
        self.stop()

    def stop(self) -> None:
        """End all processes of the node."""
        processes = self._find_all()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(processes, timeout=60)
        self._process.wait(60)

    def find_ranks(self) -> list[psutil.Process]:
        """The processes of ranks that train here."""
        return [one for one in self._find_all() if _title(one).startswith("ray::RayTrainWorker")]

    def _find_all(self) -> list[psutil.Process]:
        try:
            own = psutil.Process(self._process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


class RayCluster:
    """Nodes with one processor each; the first is the head."""

    def __init__(self) -> None:
        # Short: the names of sockets have at most 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))
        self.nodes: list[RayNode] = []
        self._numbers = itertools.count()
        port = _free_port()
        self.address = f"127.0.0.1:{port}"
        self._start(
            "--head",
            f"--port={port}",
            f"--ray-client-server-port={_free_port()}",
            "--include-dashboard=false",
            f"--temp-dir={self._folder / 'ray'}",
        )

    def add_node(self) -> RayNode:
        return self._start(f"--address={self.address}")

    def replace_lost_nodes(self) -> None:
        """Start a node for each whose process has ended."""
        lost = [node for node in self.nodes if not node.is_alive]
        self.nodes = [node for node in self.nodes if node.is_alive]
        for _node in lost:
            self.add_node()

    def find_ranks(self) -> list[psutil.Process]:
        return [rank for node in self.nodes for rank in node.find_ranks()]

    def stop(self) -> None:
        for node in reversed(self.nodes):
            node.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, *arguments: str) -> RayNode:
        node = RayNode(self._folder / f"node-{next(self._numbers)}", arguments)
        self.nodes.append(node)
        wait_for(lambda: node.is_up, "the Ray node", timeout_seconds=120)
        return node


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
