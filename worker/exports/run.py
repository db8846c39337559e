"""The exporting child process, `python -m worker.exports.run <report_fd>`: an adapter in, verified files out.

It runs on the CPU at a low priority. It knows neither the database nor the artifact store: the worker, which
owns the lease, stores the files.
"""

import hashlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import BaseModel

from app.core.engine.base_models import find_folder
from app.core.errors import TunesmithError
from app.core.errors.base_models import ModelMissing
from app.core.errors.exports import ExportDiskFull, ExportFailure
from app.core.errors.jobs import DiskFull, OutOfMemory
from app.core.exports.results import Agreement, ExportedFile
from app.core.specs.export import BaseWeights, GgufLoraSpec, GgufSpec, PytorchBinSpec
from app.core.specs.states import ExportPhase
from app.core.storage.disk import has_space
from worker.exports import disk, formats, hub, model_card, verification
from worker.exports.agreement import find_threshold
from worker.exports.gguf.export import gguf_base_name, gguf_lora_name
from worker.exports.inputs import ExportInputs
from worker.exports.ollama import modelfile
from worker.exports.produced import ProducedFiles, VerifiedModels
from worker.exports.prompts import collect_prompts
from worker.exports.reports import Exported, ExportFailed, Exporting, ExportRequest
from worker.models.device import is_out_of_memory
from worker.models.files import fingerprint, location
from worker.models.files.error_text import describe
from worker.processes.child import ParentLink
from worker.processes.logs import set_up_logging
from worker.processes.redaction import redact

log = logging.getLogger(__name__)

_NICENESS = 10
_CHUNK_BYTES = 1 << 20
_MAX_MESSAGE = 2000

Send = Callable[[BaseModel], None]


def main(report_fd: int) -> None:
    """Run the export that the worker requests and report its result."""
    set_up_logging()
    os.nice(_NICENESS)
    link = ParentLink(report_fd)
    request = link.read_request(ExportRequest)
    # A stop loses nothing of use: a complete merge is renamed already, and the worker removes the rest.
    push = hub.HubPush.of(request.spec)
    stopping = threading.Event()
    link.watch(on_stop=lambda: _stop(push, stopping))
    ending = run(request, link.send, push)
    if stopping.is_set() and isinstance(ending, ExportFailed):
        # The export did not fail by itself: its repository was deleted. The process ends in `_stop`.
        threading.Event().wait()
    link.send(ending)
    # A thread blocked on standard input holds its lock; a regular interpreter exit would abort.
    os._exit(0)


def _stop(push: hub.HubPush | None, stopping: threading.Event) -> None:
    stopping.set()
    if push is not None:
        push.undo()
    os._exit(0)


def run(request: ExportRequest, send: Send, push: hub.HubPush | None = None) -> Exported | ExportFailed:
    """Run one export. Returns its last report."""
    found: list[Agreement] = []
    try:
        return _export(request, _Announcer(send), push or hub.HubPush.of(request.spec), found)
    except Exception as error:  # the boundary of the export: any error becomes its report
        log.exception("The export failed")
        known = _explain(error, request.folder)
        return ExportFailed(
            code=known.code,
            message=redact(known.message)[:_MAX_MESSAGE],
            hint=known.hint,
            agreement=found[0] if found else None,
        )


class _Announcer:
    """Sends the export's progress at each percent."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._last: tuple[ExportPhase, int] | None = None

    def __call__(self, phase: ExportPhase, progress: float) -> None:
        now = (phase, int(100 * progress))
        if now != self._last:
            self._last = now
            self._send(Exporting(phase=phase, progress=round(progress, 2)))


def _export(
    request: ExportRequest, announce: _Announcer, push: hub.HubPush | None, found: list[Agreement]
) -> Exported:
    spec = request.spec
    announce(ExportPhase.PREPARING, 0.0)
    if push is not None:
        push.check()
    base = _locate(request)
    inputs = ExportInputs.gather(request, base, announce)
    adapter_bytes = sum(path.stat().st_size for path in request.adapter_folder.iterdir())
    elements = inputs.checkpoint.elements
    disk.check_disk_space(
        request.folder,
        disk.count_bytes(
            spec,
            elements=elements,
            adapter_bytes=adapter_bytes,
            has_merged=inputs.has_merged,
            converted_bytes=inputs.converted_bytes,
        ),
    )
    produced = formats.produce(inputs)
    verified = _verify(inputs, produced)
    found.append(verified.agreement)
    if not verified.accepted:
        verification.check(verified.agreement)
    notes = [*_notes(inputs, verified.agreement), *produced.notes, *verified.leave_out(produced.folder)]
    notes += _write_modelfile(inputs, produced, verified)
    _write_card(inputs, produced, verified.agreement, notes)
    url = None
    if push is not None:
        announce(ExportPhase.PUSHING, 0.0)
        url = push.run(produced.folder, f"{request.adapter_name}, exported by Tunesmith")
    return Exported(
        folder=produced.folder,
        files=[] if url else _describe_files(produced.folder, verified.by_file),
        agreement=verified.agreement,
        notes=notes,
        url=url,
    )


def _locate(request: ExportRequest) -> Path:
    """The base model's folder. Raises ModelMissing, ModelGated, HubUnreachable, BaseModelChanged."""
    name = request.base_model
    if "/" not in name and find_folder(name, request.models_folder) is None:
        raise ModelMissing(
            f"The base model {name!r} of this adapter is gone.",
            hint="Put it back into the models folder, then retry.",
        )
    folder = location.locate(name, request.models_folder)
    fingerprint.check_base(request.adapter_folder, folder, name)
    return folder


def _verify(inputs: ExportInputs, produced: ProducedFiles) -> VerifiedModels:
    """Compare every model among the files with the live adapter."""
    request, elements = inputs.request, inputs.checkpoint.elements
    inputs.announce(ExportPhase.VERIFYING, 0.0)
    prompts = collect_prompts(inputs.tokenizer, request.dataset)
    live = verification.run_live(
        inputs.base, request.adapter_folder, request.quantization, prompts, elements=elements
    )
    compared = []
    for number, model in enumerate(produced.models, 1):
        inputs.announce(ExportPhase.VERIFYING, number / (len(produced.models) + 1))
        threshold = find_threshold(
            request.spec, model.type, trained_in_4bit=request.quantization.load_in_4bit
        )
        agreement = verification.compare(live, model.load, threshold, loaded_with=produced.loaded_with)
        compared.append((model.file, agreement))
    return VerifiedModels(compared)


def _base_weights(inputs: ExportInputs) -> BaseWeights | None:
    """The base weights that a 4-bit adapter is merged into; None: not trained in 4 bits, or not merged."""
    base: BaseWeights | None = getattr(inputs.request.spec, "base", None)
    return base if inputs.request.quantization.load_in_4bit and inputs.weights is not None else None


def _notes(inputs: ExportInputs, agreement: Agreement) -> list[str]:
    """What users of the files should know."""
    notes = []
    base = _base_weights(inputs)
    if base is not None:
        notes.append(model_card.EXPLAINED[base])
    if agreement.mean_kl > agreement.adapter_kl / 2:
        notes.append(
            f"The files are {agreement.mean_kl:.2g} nats away from the live adapter; the base model "
            f"without it is "
            f"{agreement.adapter_kl:.2g} away: what the adapter learned may drown in the rounding."
        )
    spec, config = inputs.request.spec, inputs.shape.config
    if isinstance(spec, GgufSpec | GgufLoraSpec) and config.model_type == "mistral" and config.sliding_window:
        notes.append(
            f"llama.cpp gives this model no sliding window: beyond {config.sliding_window} tokens it differs."
        )
    if isinstance(spec, GgufLoraSpec) and inputs.request.quantization.load_in_4bit:
        notes.append(model_card.EXPLAINED_LORA)
    if isinstance(spec, PytorchBinSpec):
        notes.append("These files are pickles: load them with weights_only=True.")
    return notes


def _write_modelfile(inputs: ExportInputs, produced: ProducedFiles, verified: VerifiedModels) -> list[str]:
    """Write the Modelfile of GGUF files that are a whole model. Returns what its users should know."""
    spec, name = inputs.request.spec, inputs.name
    models, adapter = list(verified.by_file), None
    if isinstance(spec, GgufLoraSpec) and spec.with_base:
        models, adapter = [gguf_base_name(name)], gguf_lora_name(name, spec.type)
    if not models:
        return []
    template = modelfile.find_template(inputs.tokenizer)
    modelfile.write_modelfile(
        produced.folder,
        title=name,
        models=models,
        adapter=adapter,
        template=template,
        tokenizer=inputs.tokenizer,
        base=inputs.base,
    )
    return template.notes


def _write_card(
    inputs: ExportInputs, produced: ProducedFiles, agreement: Agreement, notes: list[str]
) -> None:
    """Write the model card of a merged model; an exported adapter has its own."""
    if inputs.weights is None or isinstance(inputs.request.spec, GgufLoraSpec):
        return
    base = _base_weights(inputs)
    (produced.folder / model_card.CARD).write_text(
        model_card.write_card(
            name=inputs.name,
            base_model=inputs.request.base_model,
            base=base,
            agreement=agreement,
            notes=[note for note in notes if base is None or note != model_card.EXPLAINED[base]],
            library="gguf" if isinstance(inputs.request.spec, GgufSpec) else "transformers",
        )
    )


def _describe_files(folder: Path, agreements: Mapping[str, Agreement]) -> list[ExportedFile]:
    return [
        ExportedFile(
            name=path.name,
            size_bytes=path.stat().st_size,
            sha256=_hash(path),
            agreement=agreements.get(path.name),
        )
        for path in sorted(folder.iterdir())
        if path.is_file()
    ]


def _hash(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            total.update(chunk)
    return total.hexdigest()


def _explain(error: Exception, folder: Path) -> TunesmithError:
    if isinstance(error, TunesmithError) and not isinstance(error, DiskFull):
        return error
    # The disk is checked before the files are removed: torch.save reports only that writing failed.
    if isinstance(error, DiskFull) or not has_space(folder):
        return ExportDiskFull(hint="Free some space, then retry: a complete merge is kept.")
    if is_out_of_memory(error):
        return OutOfMemory("The machine has no memory left.", hint="Free some memory, then retry.")
    return ExportFailure(f"The export failed: {describe(error)}.", hint="See the worker's log of exports.")


if __name__ == "__main__":
    main(int(sys.argv[1]))
