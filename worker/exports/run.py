"""The exporting child: `python -m worker.exports.run <report_fd>`. An adapter in, proved files out.

It runs on the CPU alone and gives way to all else. It has no database and no artifact store: what
it makes goes to the worker, which owns the lease.
"""

import hashlib
import logging
import os
import sys
from collections.abc import Callable
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
from worker.atomic_folders import is_disk_full
from worker.exports import disk, formats as making, hub, model_card as card, verification
from worker.exports.agreement import find_threshold
from worker.exports.formats import Made, Materials
from worker.exports.prompts import collect_prompts
from worker.exports.reports import Exported, ExportFailed, Exporting, ExportRequest
from worker.models import base_model, fingerprint
from worker.processes.child import ParentLink
from worker.processes.redaction import redact

log = logging.getLogger(__name__)

_NICENESS = 10
_CHUNK_BYTES = 1 << 20
_MAX_MESSAGE = 2000

Send = Callable[[BaseModel], None]


def main(report_fd: int) -> None:
    """Export, and report how it ended."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("httpx", "httpx2"):
        # The Hub's client logs every address, and those that files are sent to carry signatures.
        logging.getLogger(name).setLevel(logging.WARNING)
    os.nice(_NICENESS)
    link = ParentLink(report_fd)
    request = link.read_request(ExportRequest)
    # Nothing of use is lost: a complete merge has its name already, and the worker removes the rest.
    push = hub.Push.of(request.spec)
    link.watch(on_stop=lambda: _stop(push))
    link.send(run(request, link.send, push))
    # The thread that reads standard input holds its lock; the interpreter's own way out would abort over it.
    os._exit(0)


def _stop(push: hub.Push | None) -> None:
    if push is not None:
        push.undo()
    os._exit(0)


def run(request: ExportRequest, send: Send, push: hub.Push | None = None) -> Exported | ExportFailed:
    """One export; the answer is the report that ends it."""
    found: list[Agreement] = []
    try:
        return _export(request, _Announcer(send), push or hub.Push.of(request.spec), found)
    except Exception as error:  # the boundary of the export: whatever it was, the export must say it
        log.exception("The export failed")
        known = _explain(error, request.folder)
        return ExportFailed(
            code=known.code,
            message=redact(known.message)[:_MAX_MESSAGE],
            hint=known.hint,
            agreement=found[0] if found else None,
        )


class _Announcer:
    """Says how far the export is, at each hundredth."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._last: tuple[ExportPhase, int] | None = None

    def __call__(self, phase: ExportPhase, progress: float) -> None:
        now = (phase, int(100 * progress))
        if now != self._last:
            self._last = now
            self._send(Exporting(phase=phase, progress=round(progress, 2)))


def _export(
    request: ExportRequest, announce: _Announcer, push: hub.Push | None, found: list[Agreement]
) -> Exported:
    spec = request.spec
    announce(ExportPhase.PREPARING, 0.0)
    if push is not None:
        push.check()
    base = _locate(request)
    materials = Materials.gather(request, base, announce)
    adapter_bytes = sum(path.stat().st_size for path in request.adapter_folder.iterdir())
    elements = materials.checkpoint.elements
    disk.check_room(
        request.folder,
        disk.count_bytes(
            spec, elements=elements, adapter_bytes=adapter_bytes, has_merged=materials.has_merged
        ),
    )
    made = making.make(materials)
    agreement = _prove(materials, made)
    found.append(agreement)
    verification.check(agreement)
    notes = _notes(materials, agreement)
    _write_card(materials, made, agreement, notes)
    url = None
    if push is not None:
        announce(ExportPhase.PUSHING, 0.0)
        url = push.run(made.folder, f"{request.adapter_name}, exported by Tunesmith")
    return Exported(
        folder=made.folder,
        files=[] if url else _describe_files(made.folder),
        agreement=agreement,
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
    folder = base_model.locate(name, request.models_folder)
    fingerprint.check_base(request.adapter_folder, folder, name)
    return folder


def _prove(materials: Materials, made: Made) -> Agreement:
    request, elements = materials.request, materials.checkpoint.elements
    materials.announce(ExportPhase.PROVING, 0.0)
    prompts = collect_prompts(materials.tokenizer, request.dataset)
    live = verification.observe(
        materials.base, request.adapter_folder, request.quantization, prompts, elements=elements
    )
    materials.announce(ExportPhase.PROVING, 0.5)
    threshold = find_threshold(request.spec, trained_in_4bit=request.quantization.load_in_4bit)
    return verification.compare(live, made.load, threshold, loaded_with=made.loaded_with)


def _base_weights(materials: Materials) -> BaseWeights | None:
    """None: it was not trained in 4 bits, or is not merged."""
    base: BaseWeights | None = getattr(materials.request.spec, "base", None)
    return base if materials.request.quantization.load_in_4bit and materials.weights is not None else None


def _notes(materials: Materials, agreement: Agreement) -> list[str]:
    """What a person should know of the files."""
    notes = []
    base = _base_weights(materials)
    if base is not None:
        notes.append(card.EXPLAINED[base])
    if agreement.mean_kl > agreement.adapter_kl / 2:
        notes.append(
            f"The files are {agreement.mean_kl:.2g} nats away from the live adapter; the base model "
            f"without it is "
            f"{agreement.adapter_kl:.2g} away: what the adapter learned may drown in the rounding."
        )
    spec, config = materials.request.spec, materials.shape.config
    if isinstance(spec, GgufSpec | GgufLoraSpec) and config.model_type == "mistral" and config.sliding_window:
        notes.append(
            f"llama.cpp gives this model no sliding window: beyond {config.sliding_window} tokens it differs."
        )
    if isinstance(spec, GgufLoraSpec) and materials.request.quantization.load_in_4bit:
        notes.append(card.EXPLAINED_LORA)
    if isinstance(spec, PytorchBinSpec):
        notes.append("These files are pickles: load them with weights_only=True.")
    return notes


def _write_card(materials: Materials, made: Made, agreement: Agreement, notes: list[str]) -> None:
    """Only whole models get one; an adapter has its own."""
    if materials.weights is None or isinstance(materials.request.spec, GgufLoraSpec):
        return
    base = _base_weights(materials)
    (made.folder / card.CARD).write_text(
        card.write_card(
            name=materials.name,
            base_model=materials.request.base_model,
            base=base,
            agreement=agreement,
            notes=[note for note in notes if base is None or note != card.EXPLAINED[base]],
            library="gguf" if isinstance(materials.request.spec, GgufSpec) else "transformers",
        )
    )


def _describe_files(folder: Path) -> list[ExportedFile]:
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    return [ExportedFile(name=p.name, size_bytes=p.stat().st_size, sha256=_hash(p)) for p in paths]


def _hash(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            total.update(chunk)
    return total.hexdigest()


def _explain(error: Exception, folder: Path) -> TunesmithError:
    if isinstance(error, TunesmithError) and not isinstance(error, DiskFull):
        return error
    # Asked while what was written is still there: torch.save says no more than that writing failed.
    if isinstance(error, DiskFull) or is_disk_full(folder):
        return ExportDiskFull(hint="Free some space, then retry: a complete merge is kept.")
    if isinstance(error, MemoryError):
        return OutOfMemory("The machine has no memory left.", hint="Free some memory, then retry.")
    return ExportFailure(f"{type(error).__name__}: {error}", hint="See the worker's log of exports.")


if __name__ == "__main__":
    main(int(sys.argv[1]))
