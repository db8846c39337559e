"""Names that the loss reads of a model, and TRL 1.16 too, in families that do not have them."""

from transformers import PreTrainedModel


def add_names(model: PreTrainedModel) -> None:
    """Add to a loaded model and its configuration what the loss reads; nothing of it is saved."""
    _add_backbone(model)
    _add_expert_count(model)


def _add_backbone(model: PreTrainedModel) -> None:
    """Name the decoder: `base_model` is the whole model where its prefix is wrong (Llama 4)."""
    if not hasattr(model, model.base_model_prefix) and hasattr(model, "model"):
        model.base_model_prefix = "model"


def _add_expert_count(model: PreTrainedModel) -> None:
    """Name the number of experts, for the loss that balances them; without experts, turn that loss off.

    It reads `num_experts`, which Granite's mixtures call `num_local_experts`: 0 in Granite 4 Micro.
    """
    config = model.config.get_text_config()
    if not hasattr(config, "router_aux_loss_coef") or hasattr(config, "num_experts"):
        return
    if count := getattr(config, "num_local_experts", None):
        config.num_experts = count
    else:
        config.router_aux_loss_coef = 0.0
