"""Tokenizers with the control tokens of model families; text is bytes. Enough to see exact text and masks."""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

LLAMA_2 = ("<s>", "</s>")
DEEPSEEK = tuple(f"<\uff5c{name}\u2581of\u2581sentence\uff5c>" for name in ("begin", "end"))
CONTROL_TOKENS: dict[str, tuple[str, ...]] = {
    "llama2": LLAMA_2,
    "mistral": LLAMA_2,
    "mistral_v3": (*LLAMA_2, "[INST]", "[/INST]"),
    "llama3": (
        *("<|begin_of_text|>", "<|end_of_text|>"),
        *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "chatml": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "gemma": ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
    "gemma3": ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
    "phi3": ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "plain": LLAMA_2,
}
MODEL_TYPES = {
    "llama2": "llama",
    "mistral": "mistral",
    "mistral_v3": "mistral",
    "llama3": "llama",
    "chatml": "qwen2",
    "gemma": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
    "plain": "gpt_neox",
}
BEGINS = {"<s>", "<|begin_of_text|>", "<bos>", DEEPSEEK[0]}
ENDS = {"</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>", "<|return|>", DEEPSEEK[1]}


def make_tokenizer(family: str, *, template: str | None = None) -> PreTrainedTokenizerFast:
    """A base model's tokenizer as a family has it; without a chat template unless one is given."""
    return with_controls(CONTROL_TOKENS[family], template=template, rstrip=family == "phi3")


def with_controls(
    controls: Sequence[str], *, template: str | None, rstrip: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer with these control tokens, which may swallow the white space that follows them."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_make_backend(controls, rstrip),
        bos_token=next((token for token in controls if token in BEGINS), None),
        eos_token=next(token for token in controls if token in ENDS),
    )
    tokenizer.chat_template = template
    return tokenizer


def _make_backend(controls: Sequence[str], rstrip: bool) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, rstrip=rstrip and token != "<s>") for token in controls])
    return backend
