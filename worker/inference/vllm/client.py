"""vLLM's HTTP API: models, adapters at run time, and streamed completions. Knows nothing of the engine.

Follows vLLM's `entrypoints/openai/models/serving.py` and `entrypoints/serve/lora/api_router.py`. Adapters can
be loaded only where vLLM runs with `--enable-lora` and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1.
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel, ValidationError

from app.core.errors import InvalidRequest
from app.core.errors.engine import AdaptersNotUpdatable, EngineFailed, VllmUnreachable
from worker.inference.vllm.completions import AnswerPart, read_part

_CONNECT_SECONDS = 5.0
_SHORT_SECONDS = 10.0
# Shorter than the 5 s after which vLLM closes an idle connection: a request that is sent just then is lost.
_IDLE_SECONDS = 2.0
# Reading and copying an adapter's weights.
_LOAD_SECONDS = 300.0
_DATA, _DONE = "data: ", "[DONE]"


class _Card(BaseModel):
    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class _Cards(BaseModel):
    data: list[_Card]


class _Detail(BaseModel):
    message: str


class _ErrorBody(BaseModel):
    error: _Detail


@dataclass(frozen=True)
class VllmBase:
    """A base model that vLLM serves: its name there, its path or Hub id, and its context length."""

    name: str
    root: str
    max_length: int | None

    def is_named(self, name: str) -> bool:
        """Whether this is the base model that Tunesmith calls so."""
        return name in (self.name, self.root, Path(self.root).name)


@dataclass(frozen=True)
class VllmModels:
    """What vLLM serves: base models, and the paths of its adapters by name."""

    bases: list[VllmBase]
    adapters: dict[str, Path]


class ModelNotServed(Exception):
    """vLLM knows no model or adapter of this name."""


class VllmClient:
    """A client of one vLLM. Must be closed."""

    def __init__(self, url: str, api_key: str | None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = url.rstrip("/").removesuffix("/v1")
        self._http = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(_SHORT_SECONDS, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=64, keepalive_expiry=_IDLE_SECONDS
            ),
            trust_env=False,
        )

    async def list_models(self) -> VllmModels:
        """What is served now. Raises VllmUnreachable."""
        with self._errors():
            response = await self._http.get(f"{self._url}/v1/models")
            response.raise_for_status()
            cards = _Cards.model_validate_json(response.content).data
        return VllmModels(
            [
                VllmBase(card.id, card.root or card.id, card.max_model_len)
                for card in cards
                if not card.parent
            ],
            {card.id: Path(card.root or "") for card in cards if card.parent},
        )

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Load an adapter. Raises VllmUnreachable, AdaptersNotUpdatable, and InvalidRequest where refused."""
        response = await self._post("load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if response.status_code == httpx.codes.OK or "already been loaded" in response.text:
            return
        if response.status_code == httpx.codes.NOT_FOUND and _find_message(response) is None:
            raise AdaptersNotUpdatable(
                "vLLM does not load adapters at run time.",
                hint="Start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1.",
            )
        raise InvalidRequest(
            f"vLLM can't load the adapter: {_find_message(response) or response.text[:500]}",
            hint="vLLM needs to read the folder at the same path, and --max-lora-rank at least as high.",
        )

    async def unload_adapter(self, name: str) -> None:
        """Unload an adapter; one that is not loaded is no error. Raises VllmUnreachable and EngineFailed."""
        response = await self._post("unload_lora_adapter", {"lora_name": name})
        if response.status_code not in (httpx.codes.OK, httpx.codes.NOT_FOUND):
            raise EngineFailed(f"vLLM can't unload {name}: {_find_message(response) or response.text[:500]}")

    async def complete(self, body: dict[str, Any], top_count: int | None) -> AsyncGenerator[AnswerPart, None]:
        """The parts of an answer as they arrive. Closing the iterator ends the work.

        Raises ModelNotServed, VllmUnreachable, InvalidRequest, and EngineFailed where the answer breaks off.
        """
        url, timeout = f"{self._url}/v1/completions", httpx.Timeout(None, connect=_CONNECT_SECONDS)
        with self._errors():
            async with self._http.stream("POST", url, json=body, timeout=timeout) as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    _raise_refusal(response)
                async for line in response.aiter_lines():
                    if line == _DATA + _DONE:
                        return
                    if line.startswith(_DATA):
                        yield _read_event(line.removeprefix(_DATA), top_count)
        raise EngineFailed("vLLM stopped while it was answering.", hint="Try again.")

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def _post(self, route: str, body: dict[str, str]) -> httpx.Response:
        with self._errors():
            return await self._http.post(f"{self._url}/v1/{route}", json=body, timeout=_LOAD_SECONDS)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (httpx.TransportError, httpx.HTTPStatusError, ValidationError) as error:
            raise VllmUnreachable(
                f"vLLM at {self._url} does not respond as expected: {type(error).__name__}.",
                hint="Look at vLLM's log; TUNESMITH_VLLM_URL names its address.",
            ) from error


def _read_event(content: str, top_count: int | None) -> AnswerPart:
    try:
        return read_part(content, top_count)
    except ValidationError:
        message = _parse_message(content) or content[:500]
        raise EngineFailed(f"vLLM failed: {message}") from None


def _raise_refusal(response: httpx.Response) -> None:
    message = _find_message(response) or response.text[:500]
    if response.status_code == httpx.codes.NOT_FOUND:
        raise ModelNotServed(message)
    if response.is_client_error:
        raise InvalidRequest(f"vLLM refuses the request: {message}")
    raise EngineFailed(f"vLLM failed: {message}")


def _find_message(response: httpx.Response) -> str | None:
    """The message of vLLM's own errors; None where something else has sent the response."""
    return _parse_message(response.text)


def _parse_message(content: str) -> str | None:
    try:
        return _ErrorBody.model_validate_json(content).error.message
    except ValidationError:
        return None
