"""Rewrites calls and fields of the HTTP API in its messages as commands and options of `tunesmith`. Pure."""

import re

_CALL = re.compile(r"\b(GET|PUT|POST|DELETE) (/[\w{}/]*\w}?)")
# Method and path of a call, and the command that does the same. `{}` is an id.
_COMMANDS = {
    "GET /jobs": "jobs list",
    "POST /jobs": "jobs submit",
    "GET /jobs/{}": "jobs show {}",
    "DELETE /jobs/{}": "jobs rm {}",
    "POST /jobs/{}/cancel": "jobs cancel {}",
    "POST /jobs/{}/pause": "jobs pause {}",
    "POST /jobs/{}/resume": "jobs resume {}",
    "POST /jobs/{}/retry": "jobs retry {}",
    "GET /datasets": "datasets list",
    "POST /datasets": "datasets add",
    "GET /datasets/{}": "datasets show {}",
    "POST /datasets/inspect": "datasets inspect",
    "GET /datasets/{}/rows": "datasets rows {}",
    "GET /adapters": "adapters list",
    "GET /adapters/{}": "adapters show {}",
    "DELETE /adapters/{}": "adapters rm {}",
    "GET /aliases": "aliases list",
    "GET /aliases/{}": "aliases show {}",
    "PUT /aliases/{}": "aliases set {}",
    "DELETE /aliases/{}": "aliases rm {}",
    "GET /aliases/{}/versions": "aliases show {}",
    "POST /aliases/{}/rollback": "aliases rollback {}",
    "POST /adapters/{}/exports": "exports create {}",
    "GET /exports": "exports list",
    "GET /exports/{}": "exports show {}",
    "DELETE /exports/{}": "exports rm {}",
    "POST /exports/{}/cancel": "exports cancel {}",
    "POST /exports/{}/retry": "exports retry {}",
    "GET /evaluations": "evaluations list",
    "POST /evaluations": "evaluations create",
    "GET /evaluations/{}/rows": "evaluations rows {}",
    "POST /evaluations/{}/cancel": "evaluations cancel {}",
    "POST /evaluations/{}/retry": "evaluations retry {}",
    "GET /webhooks": "webhooks list",
    "GET /webhooks/{}/deliveries": "webhooks deliveries {}",
    "GET /usage": "usage",
    "GET /models": "models",
    "GET /models/downloads": "models downloads",
    "POST /models/downloads": "models download",
    "GET /v1/models": "models",
    "GET /v1/files": "datasets list",
    "GET /ready": "status",
    "GET /status": "status",
}
_FIELDS = {"on_problem=skip": "--skip-problems", "on_unused=ignore": "--on-unused ignore"}
_PLACEHOLDERS = {
    "jobs": "JOB",
    "datasets": "DATASET",
    "adapters": "ADAPTER",
    "aliases": "ALIAS",
    "exports": "EXPORT",
    "evaluations": "EVALUATION",
    "webhooks": "WEBHOOK",
}


def in_commands(text: str) -> str:
    """The text with `tunesmith jobs retry job_x` in place of POST /jobs/job_x/retry, and so on."""
    for field, option in _FIELDS.items():
        text = text.replace(field, option)
    return _CALL.sub(_command, text)


def _command(call: re.Match[str]) -> str:
    method, path = call.groups()
    parts = path.strip("/").split("/")
    found = _COMMANDS.get(f"{method} {path}")
    if found is None and len(parts) > 1:
        rest = "".join(f"/{part}" for part in parts[2:])
        found = _COMMANDS.get(f"{method} /{parts[0]}/{{}}{rest}")
        if found is not None:
            found = found.format(_PLACEHOLDERS[parts[0]] if parts[1].startswith("{") else parts[1])
    return f"`tunesmith {found}`" if found else call.group()
