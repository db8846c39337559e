"""Which scope each route needs. A route that is not listed needs `admin`; a test finds what is missing."""

import re
from functools import lru_cache

from app.core.keys.scopes import Scope

READ, INFER, TRAIN, ADMIN = Scope.READ, Scope.INFER, Scope.TRAIN, Scope.ADMIN
# Any of these is enough.
ANY = tuple(Scope)

# Method and path; of two that match a request, the first one counts.
ROUTES: dict[tuple[str, str], tuple[Scope, ...]] = {
    ("GET", "/metrics"): (READ,),
    ("GET", "/status"): (READ,),
    ("GET", "/workers"): (READ,),
    ("GET", "/usage"): ANY,  # a key sees its own; with admin everybody's
    ("POST", "/generate"): (INFER,),
    # datasets
    ("GET", "/datasets"): (READ,),
    ("POST", "/datasets"): (TRAIN,),
    ("POST", "/datasets/inspect"): (TRAIN,),
    ("GET", "/datasets/{dataset_id}"): (READ,),
    ("DELETE", "/datasets/{dataset_id}"): (TRAIN,),
    ("GET", "/datasets/{dataset_id}/download"): (READ,),
    ("GET", "/datasets/{dataset_id}/rows"): (READ,),
    ("GET", "/datasets/{dataset_id}/preview"): (READ,),
    # jobs
    ("GET", "/jobs"): (READ,),
    ("POST", "/jobs"): (TRAIN,),
    ("POST", "/jobs/preflight"): (TRAIN,),
    ("GET", "/jobs/losses"): (READ,),
    ("GET", "/jobs/{job_id}"): (READ,),
    ("PATCH", "/jobs/{job_id}"): (TRAIN,),
    ("DELETE", "/jobs/{job_id}"): (TRAIN,),
    ("POST", "/jobs/{job_id}/cancel"): (TRAIN,),
    ("POST", "/jobs/{job_id}/pause"): (TRAIN,),
    ("POST", "/jobs/{job_id}/resume"): (TRAIN,),
    ("POST", "/jobs/{job_id}/retry"): (TRAIN,),
    ("GET", "/jobs/{job_id}/events"): (READ,),
    ("GET", "/jobs/{job_id}/logs"): (READ,),
    ("GET", "/jobs/{job_id}/metrics"): (READ,),
    ("GET", "/jobs/{job_id}/metrics.svg"): (READ,),
    ("GET", "/jobs/{job_id}/samples"): (READ,),
    ("GET", "/jobs/{job_id}/comparison"): (READ,),
    # base models
    ("GET", "/models"): (READ, INFER),
    ("GET", "/models/search"): (READ,),
    ("GET", "/models/fit"): (READ,),
    ("GET", "/models/downloads"): (READ,),
    ("POST", "/models/downloads"): (TRAIN,),
    ("GET", "/models/downloads/{download_id}"): (READ,),
    ("POST", "/models/downloads/{download_id}/cancel"): (TRAIN,),
    ("DELETE", "/models/{name:path}"): (ADMIN,),
    # adapters and exports
    ("GET", "/adapters"): (READ, INFER),
    ("POST", "/adapters"): (TRAIN,),
    ("GET", "/adapters/{id_or_name:path}/download"): (READ,),
    ("GET", "/adapters/{id_or_name:path}/card"): (READ,),
    ("GET", "/adapters/{id_or_name}/exports"): (READ,),
    ("POST", "/adapters/{id_or_name}/exports"): (TRAIN,),
    ("GET", "/adapters/{id_or_name}"): (READ, INFER),
    ("DELETE", "/adapters/{id_or_name}"): (TRAIN,),
    ("GET", "/exports"): (READ,),
    ("GET", "/exports/{export_id}"): (READ,),
    ("PATCH", "/exports/{export_id}"): (TRAIN,),
    ("DELETE", "/exports/{export_id}"): (TRAIN,),
    ("GET", "/exports/{export_id}/download"): (READ,),
    ("POST", "/exports/{export_id}/cancel"): (TRAIN,),
    ("POST", "/exports/{export_id}/retry"): (TRAIN,),
    # aliases: what apps are served with
    ("GET", "/aliases"): (READ, INFER),
    ("GET", "/aliases/{name}"): (READ, INFER),
    ("PUT", "/aliases/{name}"): (ADMIN,),
    ("DELETE", "/aliases/{name}"): (ADMIN,),
    ("POST", "/aliases/{name}/rollback"): (ADMIN,),
    ("GET", "/aliases/{name}/versions"): (READ, INFER),
    # evaluations
    ("GET", "/evaluations"): (READ,),
    ("POST", "/evaluations"): (TRAIN,),
    ("GET", "/evaluations/{evaluation_id}"): (READ,),
    ("PATCH", "/evaluations/{evaluation_id}"): (TRAIN,),
    ("DELETE", "/evaluations/{evaluation_id}"): (TRAIN,),
    ("GET", "/evaluations/{evaluation_id}/events"): (READ,),
    ("GET", "/evaluations/{evaluation_id}/rows"): (READ,),
    ("GET", "/evaluations/{evaluation_id}/results"): (READ,),
    ("GET", "/evaluations/{evaluation_id}/results.csv"): (READ,),
    ("POST", "/evaluations/{evaluation_id}/cancel"): (TRAIN,),
    ("POST", "/evaluations/{evaluation_id}/retry"): (TRAIN,),
    # what is stored, and who is told: addresses outside of this machine
    ("GET", "/storage"): (READ,),
    ("DELETE", "/storage/{kind}"): (ADMIN,),
    ("GET", "/webhooks"): (ADMIN,),
    ("POST", "/webhooks"): (ADMIN,),
    ("GET", "/webhooks/{webhook_id}"): (ADMIN,),
    ("PATCH", "/webhooks/{webhook_id}"): (ADMIN,),
    ("DELETE", "/webhooks/{webhook_id}"): (ADMIN,),
    ("POST", "/webhooks/{webhook_id}/test"): (ADMIN,),
    ("GET", "/webhooks/{webhook_id}/deliveries"): (ADMIN,),
    ("GET", "/webhooks/{webhook_id}/deliveries/{delivery_id}"): (ADMIN,),
    ("POST", "/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver"): (ADMIN,),
    # keys
    ("GET", "/keys"): (ADMIN,),
    ("POST", "/keys"): (ADMIN,),
    ("GET", "/keys/self"): ANY,
    ("GET", "/keys/{key_id}"): (ADMIN,),
    ("PATCH", "/keys/{key_id}"): (ADMIN,),
    ("DELETE", "/keys/{key_id}"): (ADMIN,),
    # OpenAI's API
    ("GET", "/v1/models"): (READ, INFER),
    ("GET", "/v1/models/{model:path}"): (READ, INFER),
    ("DELETE", "/v1/models/{model:path}"): (TRAIN,),
    ("POST", "/v1/chat/completions"): (INFER,),
    ("POST", "/v1/completions"): (INFER,),
    ("POST", "/v1/embeddings"): (INFER,),
    ("POST", "/v1/responses"): (INFER,),
    ("GET", "/v1/responses/{response_id}"): (INFER,),
    ("DELETE", "/v1/responses/{response_id}"): (INFER,),
    ("POST", "/v1/responses/{response_id}/cancel"): (INFER,),
    ("GET", "/v1/responses/{response_id}/input_items"): (INFER,),
    ("GET", "/v1/files"): (READ,),
    ("POST", "/v1/files"): (TRAIN,),
    ("GET", "/v1/files/{file_id}"): (READ,),
    ("DELETE", "/v1/files/{file_id}"): (TRAIN,),
    ("GET", "/v1/files/{file_id}/content"): (READ,),
    ("GET", "/v1/fine_tuning/jobs"): (READ,),
    ("POST", "/v1/fine_tuning/jobs"): (TRAIN,),
    ("GET", "/v1/fine_tuning/jobs/{job_id}"): (READ,),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/cancel"): (TRAIN,),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/pause"): (TRAIN,),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/resume"): (TRAIN,),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/events"): (READ,),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/checkpoints"): (READ,),
    ("POST", "/v1/fine_tuning/alpha/graders/run"): (TRAIN,),
    ("POST", "/v1/fine_tuning/alpha/graders/validate"): (TRAIN,),
    ("GET", "/v1/evals"): (READ,),
    ("POST", "/v1/evals"): (TRAIN,),
    ("GET", "/v1/evals/{eval_id}"): (READ,),
    ("POST", "/v1/evals/{eval_id}"): (TRAIN,),
    ("DELETE", "/v1/evals/{eval_id}"): (TRAIN,),
    ("GET", "/v1/evals/{eval_id}/runs"): (READ,),
    ("POST", "/v1/evals/{eval_id}/runs"): (TRAIN,),
    ("GET", "/v1/evals/{eval_id}/runs/{run_id}"): (READ,),
    ("DELETE", "/v1/evals/{eval_id}/runs/{run_id}"): (TRAIN,),
    ("POST", "/v1/evals/{eval_id}/runs/{run_id}/cancel"): (TRAIN,),
    ("GET", "/v1/evals/{eval_id}/runs/{run_id}/output_items"): (READ,),
    ("GET", "/v1/evals/{eval_id}/runs/{run_id}/output_items/{output_item_id}"): (READ,),
}
# Requests that a model answers, at once or from a queue: those that count against a key's tokens of a day.
_ASKING = {
    ("POST", "/generate"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/fine_tuning/alpha/graders/run"),
    ("POST", "/evaluations"),
    ("POST", "/evaluations/{evaluation_id}/retry"),
    ("POST", "/v1/evals/{eval_id}/runs"),
}
_PARAMETER = re.compile(r"\{\w+(:path)?\}")


def find_route(method: str, path: str) -> str | None:
    """Returns the listed path that a request is for, or None."""
    return next((route for pattern, route in _patterns(method) if pattern.fullmatch(path)), None)


def find_scopes(method: str, path: str) -> tuple[Scope, ...]:
    """Returns the scopes of which a request needs one."""
    route = find_route(method, path)
    return (ADMIN,) if route is None else ROUTES[method, route]


def asks_model(method: str, path: str) -> bool:
    """Whether a model reads and makes tokens for a request."""
    return (method, find_route(method, path)) in _ASKING


@lru_cache
def _patterns(method: str) -> list[tuple[re.Pattern[str], str]]:
    """The paths of a method as patterns, with the path of each."""
    return [(re.compile(_as_pattern(path)), path) for verb, path in ROUTES if verb == method]


def _as_pattern(path: str) -> str:
    parts, place = [], 0
    for parameter in _PARAMETER.finditer(path):
        parts += [re.escape(path[place : parameter.start()]), ".*" if parameter[1] else "[^/]+"]
        place = parameter.end()
    return "".join([*parts, re.escape(path[place:])])
