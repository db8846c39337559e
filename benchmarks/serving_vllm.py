"""vLLM on the same work, for comparison: in process, and through its OpenAI server.

vLLM may be installed in an environment of its own, whose Python is named. Lines without an adapter are
measured without `--enable-lora`, as one would run vLLM then. The options are those of vLLM's pages "LoRA
Adapters" and "Engine Arguments" (docs.vllm.ai).
"""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.random_prompts import prompts
from benchmarks.serving_http import summarize_answers
from benchmarks.serving_inputs import RANK
from benchmarks.serving_vllm_engine import VllmWork
from benchmarks.streaming_clients import Answer, Load, send

_SERVER = "vllm.entrypoints.openai.api_server"
_START_SECONDS = 900
_POLL_SECONDS = 0.5
_STOP_SECONDS = 60
_LOG_CHARACTERS = 3000
_ROOM_FOR_ENDS = 16

Row = dict[str, Any]


@dataclass(frozen=True)
class VllmBench:
    """vLLM with one base model. `python` runs it; `memory_share`: of the GPU, vLLM's own default is 0.9."""

    python: str
    model: Path
    adapters: list[Path]
    prompt_tokens: int
    new_tokens: int
    is_4bit: bool
    memory_share: float
    prefills: list[tuple[int, int]] = field(default_factory=list)  # prompts at once, and tokens of each

    def version(self) -> str:
        """The version that is installed. Exits where there is none."""
        code = "import vllm; print(vllm.__version__)"
        done = subprocess.run([self.python, "-c", code], capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
            sys.exit(
                f"vLLM can't be imported by {self.python}: {reason}\nInstall it in an environment of its own "
                "(`python -m venv vllm; vllm/bin/pip install vllm`) and name its Python: "
                "--peer-python vllm/bin/python"
            )
        return done.stdout.strip().splitlines()[-1]

    def in_process(self, lines: list[tuple[int, int]], vocabulary_size: int) -> Iterator[Row]:
        """Measure (clients, adapters) lines in a process of vLLM's Python. Exits where it fails."""
        for some in _by_use_of_adapters(lines):
            with_lora = some[0][1] > 0
            work = VllmWork(
                self._engine_arguments(with_lora=with_lora),
                {one.name: str(one) for one in self.adapters} if with_lora else {},
                some,
                vocabulary_size,
                self.prompt_tokens,
                self.new_tokens,
                self.prefills,
            )
            for row in self._run(work):
                yield {"part": _part_of(row), **row}

    def through_http(self, lines: list[tuple[int, int]], token_count: int) -> Iterator[Row]:
        """Measure (clients, adapters) lines through vLLM's server. Exits where it does not start."""
        for some in _by_use_of_adapters(lines):
            began = time.perf_counter()
            with self._serve(with_lora=some[0][1] > 0) as port:
                seconds = round(time.perf_counter() - began, 1)
                yield {"part": "vllm http start", "seconds_to_ready": seconds}
                for batch, adapters in some:
                    yield {"part": "vllm http", **self._measure(port, batch, adapters, token_count)}

    def _engine_arguments(self, *, with_lora: bool) -> Row:
        arguments: Row = {
            "model": str(self.model),
            "dtype": "bfloat16",
            "max_model_len": _ROOM_FOR_ENDS
            + max([self.prompt_tokens + self.new_tokens, *(tokens for _, tokens in self.prefills)]),
            "gpu_memory_utilization": self.memory_share,
        }
        if self.is_4bit:
            arguments["quantization"] = "bitsandbytes"
        if with_lora:
            arguments |= {"enable_lora": True, "max_loras": len(self.adapters), "max_lora_rank": RANK}
        return arguments

    def _run(self, work: VllmWork) -> Iterator[Row]:
        command = [self.python, "-m", "benchmarks.serving_vllm_engine"]
        pipe = subprocess.PIPE
        with (
            self._log() as log,
            subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=log, env=_environment(), text=True
            ) as process,
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            with process.stdin as work_file:
                json.dump(dataclasses.asdict(work), work_file)
            yield from map(json.loads, process.stdout)
            if process.wait():
                _exit_with("vLLM failed", log.name)

    @contextmanager
    def _serve(self, *, with_lora: bool) -> Iterator[int]:
        """The port of a running server, which is stopped at the end."""
        port = _free_port()
        with self._log() as log:
            process = subprocess.Popen(
                [self.python, "-m", _SERVER, *self._server_options(port, with_lora=with_lora)],
                stdout=log,
                stderr=log,
                env=_environment(),
            )
            try:
                _wait_until_ready(process, port, log.name)
                yield port
            finally:
                process.terminate()
                try:
                    process.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _server_options(self, port: int, *, with_lora: bool) -> list[str]:
        arguments = self._engine_arguments(with_lora=with_lora)
        arguments |= {"host": "127.0.0.1", "port": port, "served_model_name": self.model.name}
        options = []
        for name, value in arguments.items():
            option = f"--{name.replace('_', '-')}"
            options += [option] if value is True else [option, str(value)]
        if with_lora:
            options += ["--lora-modules", *(f"{one.name}={one}" for one in self.adapters)]
        return options

    def _measure(self, port: int, batch: int, adapters: int, token_count: int) -> Row:
        """As `HttpBench.row`, with the same clients."""
        names = [one.name for one in self.adapters[:adapters]] or [self.model.name]
        self._send(port, [_body(name, [7 + index], 2) for index, name in enumerate(names)])
        texts = prompts(batch, self.prompt_tokens, token_count, seed=1000 * adapters + batch)
        answers = self._send(
            port,
            [_body(names[index % len(names)], text, self.new_tokens) for index, text in enumerate(texts)],
        )
        made = sum(answer.tokens for answer in answers)
        assert made == batch * self.new_tokens, made
        return {"batch": batch, "adapters": adapters, **summarize_answers(answers, made)}

    def _send(self, port: int, bodies: list[Row]) -> list[Answer]:
        return send(Load(port, bodies))

    @contextmanager
    def _log(self) -> Iterator[Any]:
        with tempfile.NamedTemporaryFile("w", prefix="vllm-", suffix=".log") as log:
            yield log


def _body(model: str, prompt: list[int], new_tokens: int) -> Row:
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": new_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }


def _by_use_of_adapters(lines: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """The lines without adapters, and those with any; what is empty is left out."""
    groups = ([line for line in lines if not line[1]], [line for line in lines if line[1]])
    return [group for group in groups if group]


def _part_of(row: Row) -> str:
    if "batch" not in row:
        return "vllm start"
    return "vllm prefill" if "prompt_tokens" in row else "vllm"


def _environment() -> dict[str, str]:
    # The folder of `benchmarks` alone: the other environment has its own versions of everything else.
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(_POLL_SECONDS)
    _exit_with("vLLM's server did not start", log)


def _exit_with(problem: str, log: str) -> None:
    sys.exit(f"{problem}:\n{Path(log).read_text(errors='replace')[-_LOG_CHARACTERS:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
