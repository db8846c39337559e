"""Verifies that exported files compute what the live adapter computes. Both are loaded in turn, on the CPU.

The live adapter is PEFT on the base weights that it was trained against: dequantized 4-bit weights where it
was trained in 4 bits. Memory is that of one model in float32, or in bfloat16 where only that fits; where
neither fits, verification fails before it loads anything. L: positions. V: the vocabulary.
"""

import gc
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig, PreTrainedConfig, PreTrainedModel

from app.core.errors.exports import ExportMismatch, ExportUnsupported, NoMemoryForVerification
from app.core.exports.results import Agreement, Threshold
from app.core.specs.job import QuantizationSpec
from worker.exports.agreement import LogitComparison
from worker.models import base_model
from worker.models.device import Device, find_device
from worker.models.files.reading import reading
from worker.models.peft_adapters import read_config, read_weights

_ADAPTER_HINT = "Was it trained on another base model? Else save it again with PEFT's save_pretrained."
PROMPT_TOKENS = 96
ANSWER_TOKENS = 16
# The last positions of each prompt and its answer whose logits are compared.
COMPARED_POSITIONS = 32
# Memory in multiples of the weights: activations, logits, and other processes' use.
_MEMORY_FACTOR = 1.15
_GGUF_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "max_position_embeddings", "rms_norm_eps"),
)


@dataclass(frozen=True)
class LiveReference:
    """The live adapter's greedy answer and logits for each prompt.

    `adapter_kl` is the mean KL divergence between the live adapter and the base model without it, in nats.
    """

    prompts: list[list[int]]
    answers: list[list[int]]
    logits: list[torch.Tensor]
    adapter_kl: float
    dtype: torch.dtype


def choose_dtype(elements: int, free_bytes: int) -> torch.dtype:
    """The type to compute in. Raises NoMemoryForVerification."""
    for dtype in (torch.float32, torch.bfloat16):
        if elements * dtype.itemsize * _MEMORY_FACTOR <= free_bytes:
            return dtype
    needed = elements * 2 * _MEMORY_FACTOR
    raise NoMemoryForVerification(
        f"To compare the files with the live adapter takes {needed / 1e9:.1f} GB of memory, and "
        f"{free_bytes / 1e9:.1f} GB are free.",
        hint="Free some memory, then retry: what was made so far is kept. No GPU memory is needed.",
    )


def run_live(
    base: Path,
    adapter: Path,
    quantization: QuantizationSpec,
    prompts: Sequence[Sequence[int]],
    *,
    elements: int,
) -> LiveReference:
    """Load the live adapter and generate its answers. Raises NoMemoryForVerification."""
    dtype = choose_dtype(elements, psutil.virtual_memory().available)
    model = load_live(base, adapter, quantization, dtype)
    cut = [list(prompt)[:PROMPT_TOKENS] for prompt in prompts]
    answers = [_answer(model, prompt) for prompt in cut]
    logits = [_read_logits(model, prompt + answer) for prompt, answer in zip(cut, answers, strict=True)]
    plain = _compare_without_adapter(model, cut, answers, logits)
    del model
    gc.collect()
    return LiveReference(cut, answers, logits, plain.mean_kl, dtype)


def _compare_without_adapter(
    model: PeftModel,
    prompts: Sequence[list[int]],
    answers: Sequence[list[int]],
    logits: Sequence[torch.Tensor],
) -> LogitComparison:
    """Compare the base model's logits with the live adapter's, on the adapter's answers."""
    plain = LogitComparison()
    with warnings.catch_warnings():
        # Trained biases stay in a model whose adapter is disabled, so that they do not count as a difference.
        warnings.filterwarnings("ignore", "Careful, disabling adapter layers with bias", UserWarning)
        with model.disable_adapter():
            for prompt, answer, live in zip(prompts, answers, logits, strict=True):
                plain.add(live, _read_logits(model, prompt + answer))
    return plain


def load_live(base: Path, adapter: Path, quantization: QuantizationSpec, dtype: torch.dtype) -> PeftModel:
    """Load the adapter on the base weights that it was trained against, on the CPU."""
    computed = quantization.model_copy(update={"bnb_4bit_compute_dtype": str(dtype).removeprefix("torch.")})
    model = base_model.load_for_serving(base, computed, _cpu())
    with warnings.catch_warnings():
        # PEFT warns that merging may fail where one of two tied embeddings is trained; this module verifies
        # it.
        warnings.filterwarnings("ignore", "Model has .tie_word_embeddings", UserWarning)
        with reading(
            "The adapter", hint="Export the base model that it was trained on.", raises=ExportUnsupported
        ):
            return PeftModel.from_pretrained(
                model, str(adapter), config=_without_expressions(adapter), autocast_adapter_dtype=False
            ).eval()


def _without_expressions(adapter: Path) -> LoraConfig:
    """The adapter's configuration, where the layers are named by the weights in place of regular expressions.

    An imported adapter's expressions may take exponential time, and its weights say the same.
    """
    config = LoraConfig.from_pretrained(str(adapter))
    is_expression = isinstance(config.target_modules, str) and config.target_modules != "all-linear"
    if is_expression or isinstance(config.exclude_modules, str) or config.layers_pattern:
        config.target_modules = set(read_weights(adapter, read_config(adapter)).updates)
        config.exclude_modules = config.layers_pattern = config.layers_to_transform = None
    return config


def compare(
    live: LiveReference,
    load: Callable[[torch.dtype], PreTrainedModel],
    threshold: Threshold,
    *,
    loaded_with: str,
) -> Agreement:
    """Load the exported files and compare their logits with the live adapter's."""
    model = load(live.dtype)
    comparison = LogitComparison()
    equal = 0
    for prompt, answer, logits_LV in zip(live.prompts, live.answers, live.logits, strict=True):
        found_LV = _read_logits(model, prompt + answer)
        comparison.add(logits_LV, found_LV)
        equal += _is_same_answer(logits_LV, found_LV)
    del model
    gc.collect()
    return Agreement(
        prompts=len(live.prompts),
        positions=comparison.positions,
        max_abs_logit_difference=comparison.max_difference,
        mean_abs_logit_difference=comparison.mean_difference,
        mean_kl=comparison.mean_kl,
        greedy_match=comparison.greedy_match,
        answers_equal=equal / len(live.prompts),
        adapter_kl=live.adapter_kl,
        threshold=threshold,
        loaded_with=loaded_with,
        computed_in=str(live.dtype).removeprefix("torch."),
    )


def _is_same_answer(live_LV: torch.Tensor, found_LV: torch.Tensor) -> bool:
    """Whether both models have the same most likely token at each position of the live adapter's answer.

    That is equivalent to equal greedy answers, and much faster than generating one.
    """
    # The last position predicts the token after the answer.
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
    """Load a merged model in safetensors with transformers."""
    return _load(folder, dtype, use_safetensors=True)


def load_bin(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a merged model in pickles with transformers, weights only."""
    return _load(folder, dtype, use_safetensors=False, weights_only=True)


def load_gguf(path: Path, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Load a GGUF file with transformers' own reader. `config` is that of the model as llama.cpp runs it.

    Raises ExportMismatch where a key that the reader reads differs from `config`.
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
    logits_LV: torch.Tensor = model(input_ids=torch.tensor([list(ids)])).logits[0, -COMPARED_POSITIONS:]
    return logits_LV.float().clone()


@torch.inference_mode()
def _answer(model: torch.nn.Module, prompt: Sequence[int]) -> list[int]:
    """The greedy answer of ANSWER_TOKENS tokens; an end-of-turn token does not end it."""
    ids = torch.tensor([list(prompt)])
    output, cache, answer = model(input_ids=ids, use_cache=True), None, []
    for _ in range(ANSWER_TOKENS):
        token = int(output.logits[0, -1].argmax())
        answer.append(token)
        cache = output.past_key_values
        output = model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
    return answer
