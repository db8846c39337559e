"""One family through all stages, by the worker's own code: preflight, training, serving, equality with PEFT.

A job has the recipe's defaults but for two optimizer steps, at a learning rate that makes them count.

B: rows, always one. L: tokens. V: the vocabulary.
"""

import json
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from pydantic import BaseModel
from transformers import AutoTokenizer, PreTrainedModel

from app.core.datasets.inspector import inspect
from app.core.datasets.limits import Limits
from app.core.datasets.rows import DatasetFormat
from app.core.engine.messages import AdapterRef, BaseModelRef, ChatMessage, Failed, GenerateRequest
from app.core.engine.preflight import DatasetRef, Preflight, PreflightRequest
from app.core.engine.sampling import Sampling
from app.core.jobs.events import Log, Warn
from app.core.settings import TrainingPath
from app.core.specs.job import JobSpec
from app.core.specs.states import Phase
from benchmarks.families.configs import Family
from benchmarks.families.engine import EngineRefused, MadeAnswer, RunningEngine
from benchmarks.families.results import WIDTHS, FamilyResult, Run, Verdict, Width
from benchmarks.families.tiny_model import write_model
from worker.models import base_model
from worker.models.device import Device
from worker.preflight.environment import PreflightEnvironment
from worker.preflight.service import RUN_PREFLIGHT, run_safely
from worker.processes.reports import Advanced, Ended, Happened, Outcome, TrainingRequest
from worker.training.run import run as run_attempt

_BASE = "tiny"
_ROWS = 8
_TOPICS = ("cancel a job", "read its events", "send a dataset", "see the adapter")
_QUESTION = "How do I read its events?"
_NEW_TOKENS = 6
# Largest error of the served log-probabilities, as a share of what the adapter changes in them.
_TOLERANCE = 0.01
_FREE_BYTES = 8 << 30


@dataclass(frozen=True)
class Workplace:
    """The folder of one family, its dataset in there, the device, and what adapters target."""

    folder: Path
    dataset_format: DatasetFormat
    device: Device
    targets: str | None  # the spec's `lora.target_modules`

    @property
    def models(self) -> Path:
        """The models folder."""
        return self.folder / "models"

    @property
    def rows(self) -> Path:
        """The dataset's file."""
        return self.folder / "rows.jsonl"


def run_family(
    family: Family,
    folder: Path,
    device: Device,
    engine: RunningEngine,
    save: Callable[[FamilyResult], None],
    *,
    targets: str | None,
) -> None:
    """Run all stages; after each the result so far is saved, since a stage may end the process."""
    result = FamilyResult(name=family.name, model_type=family.model_type)
    save(result)
    try:
        write_model(family, folder / "models" / _BASE)
    except Exception as error:
        traceback.print_exc()
        result.failure = f"transformers can't make a model: {error}"
        save(result)
        return
    place = Workplace(folder, _write_rows(folder), device, targets)
    for width in WIDTHS:
        run = result.runs[width] = Run()
        for stage in (_preflight, _train, _serve):
            with _recorded_failure(run, stage.__name__):
                stage(run, width, place, engine)
            save(result)


def _preflight(run: Run, width: Width, place: Workplace, _engine: RunningEngine) -> None:
    run.preflight = Verdict.no("ended without a report")
    dataset = DatasetRef(artifact=place.rows.name, rows=_ROWS, size_bytes=place.rows.stat().st_size)
    environment = PreflightEnvironment(
        models_folder=place.models,
        artifacts_url=str(place.folder),
        cache_folder=place.folder / "cache",
        device=place.device,
        free_bytes=_FREE_BYTES,
        is_busy=False,
        path=TrainingPath.AUTO,
    )
    report = run_safely(
        RUN_PREFLIGHT, PreflightRequest(spec=_make_spec(width, place), dataset=dataset), environment
    )
    if isinstance(report, Failed):
        run.preflight = Verdict.no(report.message)
        return
    assert isinstance(report, Preflight)
    run.preflight = Verdict(works=True)
    run.notices = [notice.code for notice in report.warnings]
    run.announced_path = report.serving.path


def _train(run: Run, width: Width, place: Workplace, _engine: RunningEngine) -> None:
    run.trained = Verdict.no("ended without a report")
    reports: list[BaseModel] = []
    request = TrainingRequest(
        job_id="job_0000000000000000",
        attempt=1,
        spec=_make_spec(width, place),
        dataset=place.rows,
        dataset_format=place.dataset_format,
        dataset_sha256="0" * 64,
        models_folder=place.models,
        job_folder=place.folder / width / "job",
        output_folder=place.folder / width / "adapter",
    )
    ended = run_attempt(request, reports.append, threading.Event())
    events = [report.event for report in reports if isinstance(report, Happened)]
    run.warnings = [event.code for event in events if isinstance(event, Warn)]
    optimizations = [event.message for event in events if isinstance(event, Log)]
    run.optimizations = next((line for line in optimizations if line.startswith("Optimizations")), "")
    phases = [report.phase for report in reports if isinstance(report, Advanced)]
    is_saved = Phase.VERIFYING in phases
    run.trained = Verdict(works=True) if is_saved else Verdict.no(_describe(ended))
    if is_saved:
        is_finished = ended.outcome is Outcome.FINISHED
        run.verified = Verdict(works=True) if is_finished else Verdict.no(_describe(ended))


def _serve(run: Run, width: Width, place: Workplace, engine: RunningEngine) -> None:
    """Ask the engine, and compare its log-probabilities with PEFT's for the same tokens."""
    if not run.verified.works:
        return
    run.served = Verdict.no("ended without a reply")
    quantization = _make_spec(width, place).quantization
    request = GenerateRequest(
        base_model=BaseModelRef(name=_BASE, quantization=quantization),
        adapter=AdapterRef(id=f"ad_{width}", artifact=f"{width}/adapter"),
        messages=[ChatMessage(role="user", content=_QUESTION)],
        sampling=Sampling(temperature=0, max_new_tokens=_NEW_TOKENS, logprobs=0),
    )
    try:
        answer = engine.generate(request)
    except EngineRefused as error:
        run.served = Verdict.no(str(error))
        return
    run.served, run.path = Verdict(works=True), answer.path
    run.equal_to_peft = Verdict.no("ended without a comparison")
    base = base_model.load_model(place.models / _BASE, quantization, place.device).eval()
    run.equal_to_peft = compare_with_peft(answer, base, place.folder / width / "adapter")


def compare_with_peft(answer: MadeAnswer, base: PreTrainedModel, adapter: Path) -> Verdict:
    """Whether PEFT finds each token of a greedy answer likeliest, and as likely as the engine does."""
    if not answer.token_ids:
        return Verdict.no("The answer has no tokens that could be compared.")
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    prompt_ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": _QUESTION}], add_generation_prompt=True, return_dict=False
    )
    plain_LV = _logprobs(base, prompt_ids, answer.token_ids)
    tuned = PeftModel.from_pretrained(base, str(adapter)).eval()
    verdict = _compare(answer, plain_LV, _logprobs(tuned, prompt_ids, answer.token_ids))
    if verdict.works:
        return verdict
    # Some families compute otherwise with a cache, as `generate` does, than in one pass (transformers 5.23).
    cached = _compare(answer, plain_LV, _generated_logprobs(tuned, prompt_ids, len(answer.token_ids)))
    return Verdict(works=True, reason="as PEFT generates with its cache") if cached.works else verdict


def _compare(answer: MadeAnswer, plain_LV: torch.Tensor, tuned_LV: torch.Tensor) -> Verdict:
    """Compare an answer with the log-probabilities of PEFT; `plain_LV`: those without the adapter."""
    chosen_L1 = torch.tensor(answer.token_ids)[:, None]
    plain_L, tuned_L = plain_LV.gather(1, chosen_L1)[:, 0], tuned_LV.gather(1, chosen_L1)[:, 0]
    served_L = torch.tensor(answer.logprobs)
    error = float((served_L - tuned_L).norm() / (tuned_L - plain_L).norm())
    # Written so that a NaN fails too.
    if not error <= _TOLERANCE:
        return Verdict.no(f"The served log-probabilities are off by {error:.2g} of what the adapter changes.")
    if (likeliest := tuned_LV.argmax(-1).tolist()) != answer.token_ids:
        return Verdict.no(f"The engine makes the tokens {answer.token_ids}; PEFT makes {likeliest}.")
    return Verdict(works=True, reason=f"off by {error:.1g} of what the adapter changes")


def _logprobs(model: torch.nn.Module, prompt_ids: list[int], made_ids: list[int]) -> torch.Tensor:
    """Log-probabilities [L, V] at the places of the tokens that were made, in one pass without a cache."""
    ids_BL = torch.tensor([[*prompt_ids, *made_ids]])
    with torch.no_grad():
        logits_BLV = model(input_ids=ids_BL, use_cache=False).logits.float()
    return logits_BLV[0, len(prompt_ids) - 1 : -1].log_softmax(-1)


def _generated_logprobs(model: PeftModel, prompt_ids: list[int], count: int) -> torch.Tensor:
    """Log-probabilities [L, V] of the tokens that PEFT generates, with its cache."""
    ids_BL = torch.tensor([prompt_ids])
    made = model.generate(
        input_ids=ids_BL,
        attention_mask=torch.ones_like(ids_BL),
        do_sample=False,
        min_new_tokens=count,
        max_new_tokens=count,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.cat(made.logits).float().log_softmax(-1)


def _make_spec(width: Width, place: Workplace) -> JobSpec:
    return JobSpec.model_validate(
        {
            "base_model": _BASE,
            "dataset": "ds_0000000000000000",
            "lora": {"target_modules": place.targets},
            "quantization": {"load_in_4bit": width == "4 bits"},
            "training": {"max_steps": 2, "learning_rate": 1e-2},
        }
    )


def _write_rows(folder: Path) -> DatasetFormat:
    """Short chats of different lengths, as an upload is stored."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"How do I {_TOPICS[index % 4]}? " * (1 + index % 3)},
                {"role": "assistant", "content": f"Send POST number {index}."},
            ]
        }
        for index in range(_ROWS)
    ]
    upload = folder / "upload.jsonl"
    upload.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = inspect(upload, folder / "rows.jsonl", limits=Limits()).format
    assert found is not None
    return found


def _describe(ended: Ended) -> str:
    return f"{ended.code}: {ended.message}"


@contextmanager
def _recorded_failure(run: Run, stage: str) -> Iterator[None]:
    """What a stage raises becomes its verdict, so that it does not end the other stages."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        reason = Verdict.no(f"{type(error).__name__}: {error}")
        for verdict in _VERDICTS[stage]:
            if getattr(run, verdict).works is False:
                setattr(run, verdict, reason)


_VERDICTS = {"_preflight": ["preflight"], "_train": ["trained"], "_serve": ["served", "equal_to_peft"]}
