"""`POST /adapters`: stores and checks an adapter that was trained elsewhere; `importer.py` verifies it."""

import re
import tempfile
from functools import partial
from pathlib import Path, PurePath
from typing import Annotated

from fastapi import APIRouter, File, Form, Response, UploadFile
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.orm import Session

from app.api.adapters.routes import find_adapter
from app.api.adapters.schemas import AdapterRead
from app.api.deps import Services, ServicesDep
from app.api.http.bodies.uploads import spooled
from app.api.http.errors import documented
from app.api.http.idempotency import IdempotentRequest, IdempotentRequestDep
from app.api.http.store_threads import in_store_threads
from app.core.adapters import archives, files, imports as adapter_imports
from app.core.adapters.files import TEMPLATE, Description
from app.core.engine import workers
from app.core.errors import InvalidRequest
from app.core.errors.adapters import AdapterInvalid
from app.core.specs.job import LoraSpec, QuantizationSpec
from app.core.specs.patterns import MODEL_NAME, NAME
from app.core.specs.template_syntax import find_problem

router = APIRouter(prefix="/adapters", tags=["Adapters"])

_NOT_4BIT = QuantizationSpec(load_in_4bit=False)
_ARCHIVE_ENDINGS = re.compile(r"(\.tar)?\.(zip|tar|tgz|gz)$", re.IGNORECASE)


@router.post("", status_code=202, summary="Import an adapter", responses=documented(404, 409, 413, 429))
@in_store_threads
def import_adapter(
    file: Annotated[
        UploadFile,
        File(
            description="The folder that PEFT's `save_pretrained` wrote, as a zip or a tar, gzipped or not."
        ),
    ],
    idempotent: IdempotentRequestDep,
    response: Response,
    services: ServicesDep,
    name: Annotated[
        str | None,
        Form(min_length=1, max_length=64, pattern=NAME, description="Default: the file's own name."),
    ] = None,
    base_model: Annotated[
        str | None, Form(max_length=200, description="Default: the one that adapter_config.json names.")
    ] = None,
    quantization: Annotated[
        str | None,
        Form(
            description="How the base model was held in training, a JSON object as in a job; default: not in "
            "4 bits, or what Tunesmith wrote beside an adapter of its own.",
            examples=['{"load_in_4bit": true}'],
        ),
    ] = None,
    chat_template: Annotated[
        str | None,
        Form(min_length=1, max_length=32_768, description="Default: the adapter's own, or its base model's."),
    ] = None,
) -> AdapterRead:
    """Take in a LoRA adapter that was trained elsewhere. Safetensors alone: pickles are refused.

    `curl -F file=@adapter.zip -F base_model=SmolLM2-135M-Instruct localhost:8000/adapters`

    It is `importing` until the engine has answered with it, then `ready` like every other one, or `failed`
    with the reason: `GET /adapters/{id}` says which.
    """
    adapter = idempotent.find_earlier(partial(_find, services))
    if adapter is None:
        own_name = re.sub(
            r"[^A-Za-z0-9._-]+", "-", _ARCHIVE_ENDINGS.sub("", PurePath(file.filename or "").name)
        )
        with (
            spooled(services.scratch, file.file) as archive,
            tempfile.TemporaryDirectory(dir=services.scratch.folder(), prefix="import-") as extracted,
        ):
            folder = Path(extracted)
            limit = services.settings.max_unpacked_bytes
            archives.unpack(archive, folder, max_bytes=limit)
            described = files.describe(folder)
            base_model = _resolve_base_model(base_model, described, services)
            if chat_template is not None:
                _check_template(chat_template)
                (folder / TEMPLATE).write_text(chat_template)
            adapter = _submit(
                services,
                idempotent,
                folder,
                name=name or own_name.strip(".-_")[:64] or "adapter",
                base_model=base_model,
                quantization=_resolve_quantization(quantization, described),
                lora=described.lora,
            )
        services.importer.wake()
    response.headers["location"] = f"/adapters/{adapter.id}"
    return adapter


def _submit(
    services: Services,
    idempotent: IdempotentRequest,
    folder: Path,
    *,
    name: str,
    base_model: str,
    quantization: QuantizationSpec,
    lora: LoraSpec | None,
) -> AdapterRead:
    """Store the files, then add the import in a transaction; where that fails, delete the files."""
    adapter_id, artifact = adapter_imports.name_artifact()
    template = _read_template(folder / TEMPLATE)
    adapter: AdapterRead | None = None

    def create(session: Session) -> AdapterRead:
        row = adapter_imports.submit(
            session,
            adapter_id,
            name=name,
            base_model=base_model,
            quantization=quantization,
            lora=lora,
            chat_template=template,
            artifact=artifact,
            size_bytes=size_bytes,
            max_waiting=services.settings.max_queued_jobs,
        )
        return AdapterRead.from_import(row)

    try:
        size_bytes = services.store.put_folder(artifact, folder)
        adapter = idempotent.create(create, find=partial(_find, services))
        return adapter
    finally:
        if adapter is None or adapter.id != adapter_id:
            services.store.discard(artifact)


def _resolve_base_model(given: str | None, described: Description, services: Services) -> str:
    """Raises InvalidRequest, ModelNotAllowed and UnknownModel."""
    name = given or described.base_model or ""
    if not re.fullmatch(MODEL_NAME, name):
        raise InvalidRequest(
            f"{name!r} is no base model's name." if name else "The adapter does not say its base model.",
            param="base_model",
            hint="Send `base_model`: a Hub id (owner/name) or the name of a folder in the models folder.",
        )
    with services.database.snapshot() as session:
        workers.check_base_model(session, services.settings, name)
    return name


def _resolve_quantization(given: str | None, described: Description) -> QuantizationSpec:
    if not given:
        return described.quantization or _NOT_4BIT
    try:
        return TypeAdapter(QuantizationSpec).validate_json(given)
    except ValidationError as error:
        raise InvalidRequest(
            f"quantization: {error.errors(include_url=False)[0]['msg']}.",
            param="quantization",
            hint='A JSON object as in a job, for example {"load_in_4bit": true}.',
        ) from None


def _read_template(path: Path) -> str | None:
    """The adapter's own chat template. Raises AdapterInvalid where it is no text."""
    try:
        return path.read_text("utf-8") if path.exists() else None
    except UnicodeDecodeError as error:
        raise AdapterInvalid(f"{path.name} is not UTF-8.", hint="Save it as UTF-8.") from error


def _check_template(template: str) -> None:
    problem = find_problem(template)
    if problem:
        raise InvalidRequest(f"The chat template can't be read: {problem}.", param="chat_template")


def _find(services: Services, session: Session, adapter_id: str) -> AdapterRead:
    return find_adapter(session, services.settings, adapter_id)
