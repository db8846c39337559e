"""The loss of a batch: the log-probabilities of its learned tokens.

Only hidden states of learned tokens reach the output layer, and their logits exist for a chunk of tokens at
a time. The gradient of a log-probability needs only a factor from the backward pass, so it is made in the
forward pass, while the logits of a chunk exist: the output layer is multiplied twice in all, and not three
times. The collators list which tokens are learned (`batches.py`), so the host waits for no device. Knows no
trainer.

N: learned tokens. C: tokens of a chunk. T: tokens of a batch. H: the hidden size. V: the vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from worker.training.batches import decoder_inputs

# Logits of a chunk: for up to so many tokens, as many as with a vocabulary of this size. On a CPU, where
# PyTorch makes several copies of them in float32, fewer.
_CHUNK_TOKENS = 4096
_CHUNK_VOCABULARY = 32768
_CHUNK_LOGITS_ON_CPU = 1 << 23


# Hidden states of a batch: the keyword arguments of transformers' decoders, and what these return.
Decoder = Callable[..., Any]


@dataclass(frozen=True)
class LogitShape:
    """How a family shapes a logit z: softcap · tanh(scale · z / softcap), or scale · z without a soft cap."""

    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "LogitShape":
        """What a configuration says, under the names of transformers 5.17 to 5.23."""
        factors = (getattr(config, name, None) for name in _SCALES)
        scale = next((factor for factor in factors if factor is not None), None)
        if scale is None and (divisor := getattr(config, "logits_scaling", None)) is not None:
            scale = divisor if config.model_type == "hyperclovax" else 1 / divisor
        return cls(1.0 if scale is None else scale, getattr(config, "final_logit_softcapping", None))


_SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier")


@dataclass(frozen=True)
class TokenScores:
    """Scores of the learned tokens of a batch. All but `entropy_N` and `is_likeliest_N` have a gradient.

    `balancing`: the loss by which a mixture balances its experts, with the configuration's weight; None: the
    model has none.
    """

    log_prob_sum: torch.Tensor
    log_probs_N: torch.Tensor
    entropy_N: torch.Tensor
    is_likeliest_N: torch.Tensor
    balancing: torch.Tensor | None = None


def score(model: PreTrainedModel, batch: Mapping[str, Any], decoder: Decoder | None = None) -> TokenScores:
    """Score a batch of the collators, with `learned` and `targets`; under autocast as the caller has it.

    `decoder`: computes hidden states in place of the model's own decoder, with its arguments and its output.
    """
    config = model.config.get_text_config()
    inputs = decoder_inputs(batch)
    balances = bool(getattr(config, "output_router_logits", False))
    if balances:
        inputs["output_router_logits"] = True
    outputs = (decoder or model.base_model)(**inputs, use_cache=False)
    hidden_TH = outputs.last_hidden_state.flatten(0, 1)
    head = model.get_output_embeddings()
    scores = score_hidden_states(
        _SelectRows.apply(hidden_TH, batch["learned"]),
        head.weight,
        getattr(head, "bias", None),
        batch["targets"],
        LogitShape.of(config),
    )
    if not balances:
        return scores
    balancing = config.router_aux_loss_coef * load_balancing_loss_func(
        outputs.router_logits, config.num_experts, config.num_experts_per_tok, batch.get("attention_mask")
    )
    return replace(scores, balancing=balancing)


def score_hidden_states(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_N: torch.Tensor,
    shape: LogitShape,
) -> TokenScores:
    """Scores of `targets_N`, each from one hidden state, with gradients of all but the targets."""
    return TokenScores(*_LogProbSum.apply(hidden_NH, weight_VH, bias_V, targets_N, shape))


class _LogProbSum(torch.autograd.Function):
    """(sum of the log-probabilities, each of them, entropies, whether the target is the likeliest)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        shape: LogitShape,
    ) -> tuple[torch.Tensor, ...]:
        device = hidden_NH.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_NH.dtype
        needs = ctx.needs_input_grad
        # Sums over chunks, so in float32.
        grad_weight_VH, grad_bias_V = (
            torch.zeros_like(parameter, dtype=torch.float32) if parameter is not None and is_needed else None
            for parameter, is_needed in ((weight_VH, needs[1]), (bias_V, needs[2]))
        )
        grad_NH = torch.empty_like(hidden_NH, dtype=dtype) if needs[0] else None
        log_probs_N = torch.empty_like(targets_N, dtype=torch.float32)
        entropy_N = torch.empty_like(log_probs_N)
        is_likeliest_N = torch.empty_like(targets_N, dtype=torch.bool)
        ctx.dtypes = [None if one is None else one.dtype for one in (hidden_NH, weight_VH, bias_V)]
        with torch.autocast(device, enabled=False):
            weight_VH = weight_VH.to(dtype)
            bias_V = None if bias_V is None else bias_V.to(dtype)
            for chunk in _chunks(hidden_NH, len(weight_VH)):
                hidden_CH = hidden_NH[chunk].to(dtype)
                logits_CV = functional.linear(hidden_CH, weight_VH, bias_V)
                scores = _score_logits(logits_CV, targets_N[chunk], shape)
                log_probs_N[chunk], entropy_N[chunk], is_likeliest_N[chunk], grad_CV = scores
                if grad_NH is not None:
                    torch.mm(grad_CV, weight_VH, out=grad_NH[chunk])
                if grad_weight_VH is not None:
                    grad_weight_VH += _product_in_float32(grad_CV.t(), hidden_CH)
                if grad_bias_V is not None:
                    grad_bias_V += grad_CV.sum(dim=0, dtype=torch.float32)
        ctx.mark_non_differentiable(entropy_N, is_likeliest_N)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad_NH, grad_weight_VH, grad_bias_V)
        # What the gradient of a trained output layer needs where the tokens have factors of their own.
        ctx.inputs = (
            (hidden_NH.detach(), weight_VH, bias_V, targets_N, shape) if needs[1] or needs[2] else None
        )
        return log_probs_N.sum(), log_probs_N, entropy_N, is_likeliest_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, factor: torch.Tensor | None, factors_N: torch.Tensor | None, *_others: Any
    ) -> tuple[torch.Tensor | None, ...]:
        """Multiply the saved gradients by the factor of the sum, or by those of the tokens."""
        if factor is None and factors_N is None:
            return (None,) * 5
        grad_NH, grad_weight_VH, grad_bias_V = ctx.saved_tensors
        if factors_N is None:
            found = [None if one is None else one * factor for one in (grad_NH, grad_weight_VH, grad_bias_V)]
        else:
            factors_N = factors_N if factor is None else factors_N + factor
            found = [
                None if grad_NH is None else grad_NH * factors_N[:, None],
                *(_head_gradients(factors_N, *ctx.inputs) if ctx.inputs else (None, None)),
            ]
        needed = zip(found, ctx.dtypes, ctx.needs_input_grad[:3], strict=True)
        gradients = [None if one is None or not needs else one.to(dtype) for one, dtype, needs in needed]
        return *gradients, None, None


def _head_gradients(
    factors_N: torch.Tensor,
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_N: torch.Tensor,
    shape: LogitShape,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The output layer's gradients, of log-probabilities times factors; logits are computed again."""
    grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32)
    grad_bias_V = None if bias_V is None else torch.zeros_like(bias_V, dtype=torch.float32)
    with torch.autocast(hidden_NH.device.type, enabled=False):
        for chunk in _chunks(hidden_NH, len(weight_VH)):
            hidden_CH = hidden_NH[chunk].to(weight_VH.dtype)
            logits_CV = functional.linear(hidden_CH, weight_VH, bias_V)
            *_scores, grad_CV = _score_logits(logits_CV, targets_N[chunk], shape)
            grad_CV = grad_CV * factors_N[chunk, None].to(grad_CV.dtype)
            grad_weight_VH += _product_in_float32(grad_CV.t(), hidden_CH)
            if grad_bias_V is not None:
                grad_bias_V += grad_CV.sum(dim=0, dtype=torch.float32)
    return grad_weight_VH, grad_bias_V


def _product_in_float32(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    if left.is_cuda and left.dtype.itemsize == 2:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left.float(), right.float())


def _chunks(hidden_NH: torch.Tensor, vocabulary: int) -> list[slice]:
    count = len(hidden_NH)
    logits = min(count, _CHUNK_TOKENS) * _CHUNK_VOCABULARY if hidden_NH.is_cuda else _CHUNK_LOGITS_ON_CPU
    size = max(1, logits // vocabulary)
    return [slice(begin, begin + size) for begin in range(0, count, size)]


def _score_logits(
    logits_CV: torch.Tensor, targets_C: torch.Tensor, shape: LogitShape
) -> tuple[torch.Tensor, ...]:
    """(log-probabilities, entropies, whether likeliest, gradients of the log-probabilities by the logits)."""
    if logits_CV.is_cuda:
        from worker.kernels import token_scores  # needs Triton

        scores = token_scores.score(logits_CV, targets_C, scale=shape.scale, softcap=shape.softcap)
        return *scores, logits_CV
    value_CV = logits_CV.float() * shape.scale
    slope_CV = torch.tensor(shape.scale)
    if shape.softcap is not None:
        capped_CV = torch.tanh(value_CV / shape.softcap)
        value_CV, slope_CV = capped_CV * shape.softcap, (1 - capped_CV.square()) * shape.scale
    log_total_C = value_CV.logsumexp(dim=1)
    target_C = value_CV.gather(1, targets_C[:, None])[:, 0]
    is_likeliest_C = value_CV.argmax(dim=1) == targets_C
    chance_CV = (value_CV - log_total_C[:, None]).exp_()
    entropy_C = log_total_C - torch.linalg.vecdot(chance_CV, value_CV)
    # Subtracted in float32: near certainty the difference is smaller than the rounding of either.
    grad_CV = chance_CV.neg_().scatter_add_(1, targets_C[:, None], torch.ones_like(target_C)[:, None])
    return target_C - log_total_C, entropy_C, is_likeliest_C, grad_CV.mul_(slope_CV).to(logits_CV.dtype)


class _SelectRows(torch.autograd.Function):
    """Select rows of a matrix, each at most once, so the backward pass copies gradients without adding."""

    @staticmethod
    def forward(ctx: Any, hidden_TH: torch.Tensor, places_N: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places_N)
        ctx.tokens = len(hidden_TH)
        return hidden_TH.index_select(0, places_N)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NH: torch.Tensor) -> tuple[torch.Tensor, None]:
        (places_N,) = ctx.saved_tensors
        grad_TH = grad_NH.new_zeros(ctx.tokens, grad_NH.shape[1])
        return grad_TH.index_copy_(0, places_N, grad_NH), None
