"""A training child that follows a script instead of training; the job's name selects the script.

It is a real process on real pipes, so that tests of the runner and the supervisor need no model.
"""

import os
import sys
import threading

from app.core.adapters.files import RECORD
from app.core.jobs.events import Checkpoint, Log, Metrics
from app.core.specs.states import Phase
from worker import checkpoint_folders
from worker.atomic_folders import appearing
from worker.processes.child import ParentLink
from worker.processes.reports import (
    Advanced,
    CheckpointAdapterSaved,
    Ended,
    Happened,
    Outcome,
    TrainingRequest,
)


def main() -> None:
    link = ParentLink(int(sys.argv[1]))
    request = link.read_request(TrainingRequest)
    stop = threading.Event()
    script = request.spec.name
    link.watch(on_stop=(lambda: None) if script == "ignores-stop" else stop.set)
    link.send(Advanced(phase=Phase.TRAINING, total_steps=10))
    if script == "dies-before-its-first-step":
        os._exit(9)
    if script == "shows-its-devices":
        link.send(Happened(event=Log(message=os.environ.get("CUDA_VISIBLE_DEVICES", "all"))))
    link.send(Advanced(step=1, total_steps=10, loss=2.5))
    link.send(Happened(event=Metrics(step=1, total_steps=10, epoch=0.1, loss=2.5, tokens=100)))
    if script in ("waits", "ignores-stop", "shows-its-devices") or (
        script == "waits-once" and request.attempt == 1
    ):
        stop.wait()
        link.send(Happened(event=Checkpoint(step=2)))
        link.send(Ended(outcome=Outcome.STOPPED))
        return
    if script == "writes-checkpoints":
        found = sorted(path.name for path in (request.job_folder / "checkpoints").glob("*"))
        link.send(Happened(event=Log(message=f"found {found}")))
        for step in (request.attempt * 10 + 1, request.attempt * 10 + 2):
            with appearing(checkpoint_folders.folder_of(request.job_folder / "checkpoints", step)) as folder:
                (folder / "optimizer.pt").write_bytes(b"state of %d" % step)
                checkpoint_folders.seal(folder)
            with appearing(request.job_folder / "best-adapters" / f"step-{step}") as folder:
                (folder / "adapter_model.safetensors").write_bytes(b"best of %d" % step)
            link.send(Happened(event=Checkpoint(step=step)))
        stop.wait()
        link.send(Ended(outcome=Outcome.STOPPED))
        return
    if script == "dies-in-mid-report":
        os.write(int(sys.argv[1]), b'{"type": "adv')
        os._exit(9)
    if script == "dies" or (script == "dies-once" and request.attempt == 1):
        print("about to die", file=sys.stderr, flush=True)
        sys.exit(3)
    if script == "fails":
        link.send(Ended(outcome=Outcome.FAILED, code="model_gated", message="Gated.", hint="Set HF_TOKEN."))
        return
    if script == "keeps":
        for step in (2, 4, 6):
            folder = request.job_folder / "kept-adapters" / f"step-{step}"
            folder.mkdir(parents=True)
            (folder / "adapter_model.safetensors").write_bytes(b"weights of %d" % step)
            (folder / RECORD).write_text('{"general_path": ["lora.use_dora"]}')
            link.send(CheckpointAdapterSaved(step=step, folder=folder))
    if script == "shows-its-inputs":
        assert request.continue_from
        assert request.validation_dataset
        for path in (next(request.continue_from.iterdir()), request.validation_dataset):
            link.send(Happened(event=Log(message="/".join(path.parts[-3:]))))
    request.output_folder.mkdir()
    (request.output_folder / "adapter_model.safetensors").write_bytes(b"weights")
    if script == "keeps":
        (request.output_folder / RECORD).write_text('{"general_path": ["lora.use_dora"]}')
    link.send(Happened(event=Metrics(step=10, total_steps=10, epoch=1, loss=0.5, tokens=1000)))
    link.send(Ended(outcome=Outcome.FINISHED))


if __name__ == "__main__":
    main()
