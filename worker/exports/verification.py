"""Do the produced files answer as the live adapter does? Both are loaded afresh, in turn, on the CPU.

The live adapter is PEFT on the base model as it was trained against: 4-bit weights after their trip through
4 bits. Memory is that of one model in float32, or in bfloat16 where that alone fits; if neither does, the
proof refuses before it loads anything. L: positions. V: the vocabulary.
"""

import gc
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig, PreTrainedConfig, PreTrainedModel

from app.core.errors.exports import ExportMismatch, NoMemoryForVerification
from app.core.exports.results import Agreement, Threshold
from app.core.specs.job import QuantizationSpec
from worker.exports.agreement import Tally
from worker.models import base_model
from worker.models.device import Device, find_device

PROMPT_TOKENS = 96
ANSWER_TOKENS = 16
# Logits of so many positions are kept, for each prompt: its end, and the answer.
KEPT_POSITIONS = 32
# Beside the weights: activations, logits, and what another process takes meanwhile.
_ROOM = 1.15
_GGUF_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "max_position_embeddings", "rms_norm_eps"),
)


@dataclass(frozen=True)
class Live:
    """What the live adapter says to each prompt, and how far the base model alone is from it."""

    prompts: list[list[int]]
    answers: list[list[int]]
    logits: list[torch.Tensor]
    adapter_kl: float
    dtype: torch.dtype


def choose_dtype(elements: int, free_bytes: int) -> torch.dtype:
    """The numbers to compute in. Raises NoMemoryForVerification."""
    for dtype in (torch.float32, torch.bfloat16):
        if elements * dtype.itemsize * _ROOM <= free_bytes:
            return dtype
    needed = elements * 2 * _ROOM
    raise NoMemoryForVerification(
        f"To compare the files with the live adapter takes {needed / 1e9:.1f} GB of memory, and "
        f"{free_bytes / 1e9:.1f} GB are free.",
        hint="Free some memory, then retry: what was made so far is kept. No GPU memory is needed.",
    )


def observe(
    base: Path,
    adapter: Path,
    quantization: QuantizationSpec,
    prompts: Sequence[Sequence[int]],
    *,
    elements: int,
) -> Live:
    """Load the live adapter and let it answer. Raises NoMemoryForVerification."""
    dtype = choose_dtype(elements, psutil.virtual_memory().available)
    model = load_live(base, adapter, quantization, dtype)
    cut = [list(prompt)[:PROMPT_TOKENS] for prompt in prompts]
    answers = [_answer(model, prompt) for prompt in cut]
    logits = [_read_logits(model, prompt + answer) for prompt, answer in zip(cut, answers, strict=True)]
    plain = _compare_without_adapter(model, cut, answers, logits)
    del model
    gc.collect()
    return Live(cut, answers, logits, plain.mean_kl, dtype)


def _compare_without_adapter(
    model: PeftModel,
    prompts: Sequence[list[int]],
    answers: Sequence[list[int]],
    logits: Sequence[torch.Tensor],
) -> Tally:
    """How far the base model is from the live adapter, on the adapter's answers."""
    plain = Tally()
    with warnings.catch_warnings():
        # Trained biases stay in a model whose adapter is disabled: the distance is that of all the rest.
        warnings.filterwarnings("ignore", "Careful, disabling adapter layers with bias", UserWarning)
        with model.disable_adapter():
            for prompt, answer, live in zip(prompts, answers, logits, strict=True):
                plain.add(live, _read_logits(model, prompt + answer))
    return plain


def load_live(base: Path, adapter: Path, quantization: QuantizationSpec, dtype: torch.dtype) -> PeftModel:
    """The adapter on the base model that it was trained against, both on the CPU."""
    computed = quantization.model_copy(update={"bnb_4bit_compute_dtype": str(dtype).removeprefix("torch.")})
    model = base_model.load_for_serving(base, computed, _cpu())
    with warnings.catch_warnings():
        # Where one of two tied embeddings is trained, PEFT fears for the merge. That is what is proved here.
        warnings.filterwarnings("ignore", "Model has .tie_word_embeddings", UserWarning)
        return PeftModel.from_pretrained(model, str(adapter), autocast_adapter_dtype=False).eval()


def compare(
    live: Live, load: Callable[[torch.dtype], PreTrainedModel], threshold: Threshold, *, loaded_with: str
) -> Agreement:
    """Load the files and compare. Raises NoMemoryForVerification."""
    model = load(live.dtype)
    tally = Tally()
    equal = 0
    for prompt, answer, logits_LV in zip(live.prompts, live.answers, live.logits, strict=True):
        found_LV = _read_logits(model, prompt + answer)
        tally.add(logits_LV, found_LV)
        equal += _choose_alike(logits_LV, found_LV)
    del model
    gc.collect()
    return Agreement(
        prompts=len(live.prompts),
        positions=tally.positions,
        max_abs_logit_difference=tally.max_difference,
        mean_abs_logit_difference=tally.mean_difference,
        mean_kl=tally.mean_kl,
        greedy_match=tally.greedy_match,
        answers_equal=equal / len(live.prompts),
        adapter_kl=live.adapter_kl,
        threshold=threshold,
        loaded_with=loaded_with,
        computed_in=str(live.dtype).removeprefix("torch."),
    )


def _choose_alike(live_LV: torch.Tensor, found_LV: torch.Tensor) -> bool:
    """Whether the greedy answers are the same: each of their tokens is the most likely one after the others.

    To let the files answer, too, would take longer than all the rest.
    """
    # The last position is that behind the answer.
    live, found = (logits_LV[-ANSWER_TOKENS - 1 : -1].argmax(-1) for logits_LV in (live_LV, found_LV))
    return bool((live == found).all())


def check(agreement: Agreement) -> None:
    """Raise ExportMismatch where the agreement is not good enough."""
    if agreement.mismatch:
        raise ExportMismatch(
            f"The files do not answer as the live adapter does: {agreement.mismatch}.",
            hint="Nothing is handed out. The export's `agreement` has the figures; another format may do.",
        )


def load_safetensors(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """A merged model, as anyone loads it."""
    return _load(folder, dtype, use_safetensors=True)


def load_bin(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The same in pickles; transformers unpickles weights only."""
    return _load(folder, dtype, use_safetensors=False, weights_only=True)


def load_gguf(path: Path, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A GGUF file, read by transformers' own reader; `config` is what llama.cpp takes the model for.

    That reader does not read every key: those that it reads are compared here. Raises ExportMismatch.
    """
    read = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    for key in _GGUF_KEYS:
        # Floating-point keys are 32 bits wide in the file.
        if not math.isclose(getattr(read, key), getattr(config, key), rel_tol=1e-6):
            raise ExportMismatch(f"The file says {key} = {getattr(read, key)}, not {getattr(config, key)}.")
    options = {"gguf_file": path.name, "quantization_config": GgufConfig(dequantize=True)}
    return _load(path.parent, dtype, config=config, **options)


def _load(folder: Path, dtype: torch.dtype, **options: object) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, trust_remote_code=False, **options
    )
    return model.eval()


def _cpu() -> Device:
    device = find_device()
    assert not device.is_cuda, (
        "exports leave the GPU to training: CUDA_VISIBLE_DEVICES is empty in their process"
    )
    return device


@torch.inference_mode()
def _read_logits(model: torch.nn.Module, ids: Sequence[int]) -> torch.Tensor:
    logits_LV: torch.Tensor = model(input_ids=torch.tensor([list(ids)])).logits[0, -KEPT_POSITIONS:]
    return logits_LV.float().clone()


@torch.inference_mode()
def _answer(model: torch.nn.Module, prompt: Sequence[int]) -> list[int]:
    """The greedy answer, always of the same length: the end of a turn is a token like any other here."""
    ids = torch.tensor([list(prompt)])
    output, cache, answer = model(input_ids=ids, use_cache=True), None, []
    for _ in range(ANSWER_TOKENS):
        token = int(output.logits[0, -1].argmax())
        answer.append(token)
        cache = output.past_key_values
        output = model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
    return answer
