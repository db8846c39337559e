"""A server that speaks vLLM's routes as its source defines them, and makes the tokens that a test says.

Follows vllm/entrypoints/openai/models/serving.py (models, adapters), serve/lora/api_router.py (404 without
VLLM_ALLOW_RUNTIME_LORA_UPDATING) and openai/completion/serving.py (chunks, `[DONE]`). Unlike vLLM it computes
nothing: the tokens of an answer are those of `answers`, by model.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.fakes import ServerThread


class VllmStandIn:
    """One base model; `answers` has the token ids of each model's answers, `requests` the bodies it got."""

    def __init__(self, base: str, *, root: str | None = None, updates: bool = True, port: int = 0) -> None:
        self.base, self.root = base, root or base
        self.answers: dict[str, list[int]] = {}
        self.adapters: dict[str, str] = {}
        self.requests: list[dict[str, Any]] = []
        self.loads: list[str] = []
        self.holds = False
        self.is_silent = False
        self.disconnected = asyncio.Event()
        self.max_model_len = 64
        routes = [
            Route("/health", self._health),
            Route("/v1/models", self._models),
            Route("/v1/completions", self._complete, methods=["POST"]),
        ]
        if updates:
            routes += [
                Route("/v1/load_lora_adapter", self._load, methods=["POST"]),
                Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]),
            ]
        self._server = ServerThread(Starlette(routes=routes), lifespan="off", port=port)
        self.url = self._server.url

    def restart(self) -> None:
        """Forget the adapters, as a new process of vLLM has."""
        self.adapters.clear()

    def stop(self) -> None:
        self._server.stop()

    async def _health(self, _request: Request) -> Response:
        return Response()

    async def _models(self, _request: Request) -> Response:
        if self.is_silent:
            await asyncio.sleep(60)
        base = {"id": self.base, "object": "model", "owned_by": "vllm", "root": self.root, "parent": None}
        cards = [{**base, "max_model_len": self.max_model_len}]
        cards += [
            {**base, "id": name, "root": path, "parent": self.base} for name, path in self.adapters.items()
        ]
        return JSONResponse({"object": "list", "data": cards})

    async def _load(self, request: Request) -> Response:
        body = await request.json()
        name, path = body["lora_name"], body["lora_path"]
        self.loads.append(name)
        if name in self.adapters:
            return _error(f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput", 400)
        if not (Path(path) / "adapter_config.json").is_file():
            return _error(f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError", 404)
        self.adapters[name] = path
        return Response(f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        if name not in self.adapters:
            return _error(f"The lora adapter '{name}' cannot be found.", "NotFoundError", 404)
        del self.adapters[name]
        return Response(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        if body["model"] not in (self.base, *self.adapters):
            return _error(f"The model `{body['model']}` does not exist.", "NotFoundError", 404)
        return StreamingResponse(self._chunks(body), media_type="text/event-stream")

    async def _chunks(self, body: dict[str, Any]) -> AsyncIterator[str]:
        stops = [] if body.get("ignore_eos") else body["stop_token_ids"]
        tokens = self.answers.get(body["model"], self.answers[self.base])[: body["max_tokens"]]
        is_stopped = next((place for place, token in enumerate(tokens) if token in stops), None)
        tokens = tokens if is_stopped is None else tokens[: is_stopped + 1]
        chunk = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"]}
        try:
            for place, token in enumerate(tokens):
                is_last = place == len(tokens) - 1 and not self.holds
                choice: dict[str, Any] = {"index": 0, "text": "", "token_ids": [token], "finish_reason": None}
                if is_last:
                    choice["finish_reason"] = "length" if is_stopped is None else "stop"
                if "logprobs" in body:
                    # An adapter changes what the model says.
                    first = -0.5 if body["model"] == self.base else -0.25
                    name, other = f"token_id:{token}", f"token_id:{token + 1}"
                    top = {name: first, other: -1.5} if body["logprobs"] else {name: first}
                    scores = {
                        "tokens": [name],
                        "token_logprobs": [first],
                        "top_logprobs": [top],
                        "text_offset": [0],
                    }
                    choice["logprobs"] = scores
                yield f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\n"
            if self.holds:
                await asyncio.sleep(60)
            if body.get("stream_options", {}).get("include_usage"):
                read, made = len(body["prompt"]), len(tokens)
                usage = {"prompt_tokens": read, "total_tokens": read + made, "completion_tokens": made}
                yield f"data: {json.dumps({**chunk, 'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"
        # The second where the client went away while a chunk was being sent.
        except (asyncio.CancelledError, GeneratorExit):
            self.disconnected.set()
            raise


def _error(message: str, kind: str, status: int) -> Response:
    error = {"message": message, "type": kind, "param": None, "code": status}
    return JSONResponse({"error": error}, status_code=status)
