"""Whether the files of a base model hold the weights of its architecture, no fewer and no others.

transformers fills weights that are missing with random numbers and passes over others, with a warning in a
log: such a model would be trained, and every load of it would be another one.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from transformers import PreTrainedModel

from app.core.errors.base_models import ModelUnreadable
from worker.models.files import prequantized
from worker.models.files.description import read_config
from worker.models.files.fingerprint import read_headers

_NAMES_SHOWN = 5
_MAX_TENSORS = 4096
# Constants that older transformers saved among the weights: causal masks (GPT-2, GPT-Neo, GPT-J, CodeGen) and
# the frequencies of rotary embeddings. Each model computes its own.
_CONSTANTS = re.compile(
    r"(^|\.)((self_)?attn(\.attention)?\.(bias|masked_bias|causal_mask)|rotary_emb\.inv_freq)$"
)
_TEXT_MODELS = {"language_model", "text_model"}  # their names within models that also read images or sound

_log = logging.getLogger(__name__)


OtherShape = tuple[
    str, torch.Size, torch.Size
]  # a weight's name, its shape, and its shape by the architecture


def check_loaded(
    report: Mapping[str, Any], folder: Path, model: PreTrainedModel, other_shapes: Iterable[OtherShape] = ()
) -> None:
    """Raise ModelUnreadable for a report of `from_pretrained` (`output_loading_info`) with a difference.

    Tied weights, and those that the architecture declares to be no loss, are not in such a report.
    `other_shapes`: those that `find_other_shapes` found, which are not in the report either.
    """
    missing, others = report["missing_keys"], _find_others(report["unexpected_keys"], folder, model)
    mismatched = [
        f"{key} ({list(stored)} in place of {list(wanted)})"
        for key, stored, wanted in {*report["mismatched_keys"], *other_shapes}
    ]
    faults = [
        f"{fault} {_name(names)}"
        for fault, names in (
            ("they lack", missing),
            ("they have other shapes of", mismatched),
            ("they hold weights that it does not have:", others),
        )
        if names
    ]
    if faults:
        raise ModelUnreadable(
            f"The files of the base model {folder.name!r} do not fit its architecture: {'; '.join(faults)}.",
            hint="Copy all of its files again. A model that was saved for another purpose, such as a "
            "classifier, must be saved as a causal language model.",
        )


def find_other_shapes(model: PreTrainedModel, empty: PreTrainedModel) -> list[OtherShape]:
    """The weights of a loaded model whose shapes are not those of `empty`, the same model without weights.

    transformers does not compare the shapes of weights that it quantizes or, in 5.17, of any weight of a
    model that it quantizes or dequantizes.
    """
    wanted = {name: weight.shape for name, weight in empty.named_parameters()}
    found = []
    for module_name, module in model.named_modules():
        for part, weight in module.named_parameters(module_name, recurse=False):
            shape, right = weight.shape, wanted.get(part, weight.shape)
            if isinstance(module, Linear4bit) and isinstance(weight, Params4bit):
                # Its state has the unpacked shape. A Conv1D is the transposed layer where it is unquantized.
                state = weight.quant_state
                shape, right = state.shape, torch.Size((module.out_features, module.in_features))
            if shape != right:
                found.append((part, shape, right))
    return found


def check_stored(folder: Path, model: PreTrainedModel) -> None:
    """`check_loaded` before a load: transformers matches tensors of the stored shapes, which hold no numbers.

    `model`: the base model without weights. Nothing is checked where the folder has no weights, very many
    of them (experts one by one take seconds), or quantized ones, whose names are others, nor where
    transformers can't do this.
    """
    if not any(folder.glob("*.safetensors")) or prequantized.find_format(model.config) is not None:
        return
    tensors = read_headers(folder)
    if len(tensors) > _MAX_TENSORS:
        return
    empty = {name: torch.empty(tensor.shape, device="meta") for name, tensor in tensors.items()}
    try:
        loaded: Any = type(model).from_pretrained(
            None,
            config=deepcopy(model.config),
            state_dict=empty,
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # the load of the job says what is wrong, if it is the files
        _log.warning("The weights of %s are not compared with its architecture: %r", folder.name, error)
        return
    check_loaded(loaded[1], folder, loaded[0])


def _find_others(unexpected: Iterable[str], folder: Path, model: PreTrainedModel) -> list[str]:
    """The unexpected weights that are a fault.

    Saved constants are none. Nor are weights of image and sound where transformers loads only the text model
    of the files, as of Llama 4: those under names that the text model has no module of.
    """
    others = [key for key in unexpected if not _CONSTANTS.search(key)]
    if type(read_config(folder)) is type(model.config):
        return others
    tops = dict(model.named_children())
    parts = {name for name, _module in tops["model"].named_children()} if "model" in tops else set()

    def is_of_text(key: str) -> bool:
        first, second, *_rest = [*key.split("."), ""]
        return first in _TEXT_MODELS or (
            second in parts | _TEXT_MODELS if first == "model" else first in tops
        )

    return [key for key in others if is_of_text(key)]


def _name(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _NAMES_SHOWN} more" if len(ordered) > _NAMES_SHOWN else ""
    return ", ".join(ordered[:_NAMES_SHOWN]) + more
