"""Searches the Hub for models that may be trained. Knows no torch."""

from typing import Any

from huggingface_hub import ModelInfo, constants, get_session
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from app.core.base_models.messages import HubModel, HubSearch, HubSearchRequest
from worker.models.files.error_text import describe

# Of models with these tags alone the weights can be loaded.
_TAGS = ["safetensors", "transformers"]
# What continues text; a model without a task may.
_TASKS = {None, "text-generation", "image-text-to-text", "any-to-any", "image-to-text"}
# So many times what is wanted is asked for, since the Hub does not filter by several tasks.
_SURPLUS = 3
_SECONDS = 10.0
_BITS = {"F64": 64, "F32": 32, "I64": 64, "I32": 32, "F16": 16, "BF16": 16, "I16": 16, "F4": 4}
_OTHER_BITS = 8


def search(request: HubSearchRequest) -> HubSearch:
    """The models that a search finds, the most downloaded first, or why the Hub could not be asked."""
    try:
        found = [ModelInfo(**model) for model in _ask(request)]
    except OfflineModeIsEnabled:
        return HubSearch(state="offline", message="The worker is set not to ask the Hub (HF_HUB_OFFLINE).")
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status < 500:
            return HubSearch(
                state="refused",
                message=f"The Hub refused the search (HTTP {status}): the worker's HF_TOKEN may be wrong.",
            )
        return HubSearch(state="unreachable", message=f"The Hub does not work now (HTTP {status}).")
    except (
        Exception
    ) as error:  # the client's HTTP library, which differs between its versions, raises its own
        return HubSearch(state="unreachable", message=f"The Hub can't be reached: {describe(error)}.")
    models = [_read(model) for model in found if model.pipeline_tag in _TASKS]
    return HubSearch(state="ok", data=models[: request.limit])


def _ask(request: HubSearchRequest) -> list[dict[str, Any]]:
    """One request: `HfApi.list_models` would try again for half a minute while a person waits."""
    response = get_session().get(
        f"{constants.ENDPOINT}/api/models",
        params={
            "search": request.query,
            "filter": _TAGS,
            "sort": "downloads",
            "limit": _SURPLUS * request.limit,
            "expand": ["downloads", "gated", "pipeline_tag", "safetensors", "tags"],
        },
        headers=build_hf_headers(),
        timeout=_SECONDS,
        follow_redirects=True,
    )
    hf_raise_for_status(response)
    found: list[dict[str, Any]] = response.json()
    return found


def _read(model: ModelInfo) -> HubModel:
    licenses = [tag.removeprefix("license:") for tag in model.tags or [] if tag.startswith("license:")]
    weights = model.safetensors
    sizes = weights.parameters if weights else {}
    return HubModel(
        name=model.id,
        parameters=weights.total if weights else None,
        size_bytes=sum(count * _BITS.get(kind, _OTHER_BITS) // 8 for kind, count in sizes.items()) or None,
        license=licenses[0] if licenses else None,
        is_gated=bool(model.gated),
        downloads=model.downloads,
    )
