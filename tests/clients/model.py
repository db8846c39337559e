"""A small model that was trained to call two functions one after the other, and then to answer in words.

With random weights a model calls functions only where it must, and an agent loop ends only at its limits.
This one learns three turns of one conversation, whatever functions and system prompt are before it, in Qwen's
template.
"""

import hashlib
import random
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.clients.environments import CACHE

NAME = "guide"
CONTEXT_LENGTH = 8192
TEMPLATE = Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja"
QUESTION = "What is the weather in Oslo, and how many people live there?"
ANSWER = "It rains in Oslo, where 700000 people live."
ANSWER_WITHOUT_FUNCTIONS = "I can't look that up."
_RESULTS = {"get_weather": "It rains in Oslo.", "get_population": "700000"}
_WORDS = """
the a city weather people live Oslo Lima Kyoto get how many of in object string number type properties
required description additionalProperties false true enum title default value be short use functions answer
you are helpful assistant parameters function name strict items array call response final output schema
""".split()  # noqa: SIM905
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>")
_IGNORED = -100
# The mean of as many steps.
_TRAINED_LOSS, _TRAINED_STEPS = 0.002, 25
_MAX_STEPS = 1500

Row = tuple[list[dict[str, Any]], list[dict[str, Any]] | None]
Encoded = tuple[list[int], list[int]]


def make_model(folder: Path) -> Path:
    """Put the model into `folder/guide`; it is trained once (a minute) and cached. Returns that path."""
    digest = hashlib.sha256(Path(__file__).read_bytes() + TEMPLATE.read_bytes()).hexdigest()[:16]
    cached = CACHE / "models" / digest
    if not cached.is_dir():
        tokenizer = _make_tokenizer()
        model = _train(tokenizer)
        unfinished = cached.with_suffix(".unfinished")
        tokenizer.save_pretrained(unfinished)
        model.save_pretrained(unfinished)
        unfinished.rename(cached)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).symlink_to(cached)
    return folder / NAME


def _make_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=CONTEXT_LENGTH,
        chat_template=TEMPLATE.read_text(),
    )
    source = random.Random(0)
    rows = (_make_row(source) for _ in range(200))
    texts = [tokenizer.apply_chat_template(messages, tools=tools, tokenize=False) for messages, tools in rows]
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.backend_tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    source = random.Random(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses: list[float] = []
    while len(losses) < _MAX_STEPS:
        batch = [_encode(tokenizer, *_make_row(source)) for _ in range(8)]
        loss = model(**_pad(batch, tokenizer.pad_token_id)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if len(losses) > _TRAINED_STEPS and mean(losses[-_TRAINED_STEPS:]) < _TRAINED_LOSS:
            return model
    raise AssertionError(f"the model has not learned its conversation: its last loss is {losses[-1]:.3f}")


def _make_row(source: random.Random) -> Row:
    """A conversation and its functions; None: there are none, so that none is called."""

    def noise(most: int) -> str:
        return " ".join(source.choices(_WORDS, k=source.randint(1, most)))

    messages = [{"role": "system", "content": noise(60)}] if source.random() < 0.6 else []
    messages.append({"role": "user", "content": QUESTION})
    kind = source.random()
    if kind < 0.2:
        if kind < 0.1:  # another agent handed the conversation over
            result = f'{{"assistant": "{noise(2)}"}}'
            messages += [_call(f"transfer_to_{source.choice(_WORDS)}"), {"role": "tool", "content": result}]
        return [*messages, {"role": "assistant", "content": ANSWER_WITHOUT_FUNCTIONS}], None
    for name in _RESULTS:
        result = _RESULTS[name] if source.random() < 0.7 else f'"{_RESULTS[name]}"'
        messages += [_call(name), {"role": "tool", "content": result}]
    messages.append({"role": "assistant", "content": ANSWER})
    if kind < 0.3:
        return messages, None
    tools = [_make_tool(name, source, noise) for name in source.sample(list(_RESULTS), 2)]
    return messages, tools


def _call(name: str) -> dict[str, Any]:
    function = {"name": name, "arguments": {"city": "Oslo"} if name in _RESULTS else {}}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def _make_tool(name: str, source: random.Random, noise: Any) -> dict[str, Any]:
    """The function as one client or another describes it."""
    city: dict[str, Any] = {"type": "string", "enum": ["Oslo", "Lima", "Kyoto"]}
    parameters: dict[str, Any] = {"type": "object", "properties": {"city": city}, "required": ["city"]}
    for key, value in (("additionalProperties", False), ("title", noise(2)), ("description", noise(8))):
        if source.random() < 0.4:
            parameters[key] = value
        if source.random() < 0.2:
            city[key] = value
    parameters = {key: parameters[key] for key in source.sample(list(parameters), len(parameters))}
    function: dict[str, Any] = {"name": name, "description": noise(10), "parameters": parameters}
    if source.random() < 0.3:
        function["strict"] = True
    keys = source.sample(list(function), len(function))
    function = {key: function[key] for key in keys}
    return {"type": "function", "function": function}


def _encode(tokenizer: PreTrainedTokenizerFast, messages: list[Any], tools: list[Any] | None) -> Encoded:
    """Tokens, and labels: all that the assistant says where functions are offered, else its last turn."""
    first = next(index for index, message in enumerate(messages) if message["role"] == "assistant")
    begin = first if tools else len(messages) - 1
    ids, labels = [], []
    before = ""
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or index < begin:
            continue
        rendered = {"tools": tools, "tokenize": False}
        prompt = tokenizer.apply_chat_template(messages[:index], add_generation_prompt=True, **rendered)
        whole = tokenizer.apply_chat_template(messages[: index + 1], **rendered).rstrip("\n")
        for text, is_learned in ((prompt.removeprefix(before), False), (whole.removeprefix(prompt), True)):
            made = tokenizer(text)["input_ids"]
            ids += made
            labels += made if is_learned else [_IGNORED] * len(made)
        before = whole
    return ids, labels


def _pad(batch: list[Encoded], pad_id: int) -> dict[str, torch.Tensor]:
    length = max(len(ids) for ids, _ in batch)
    return {
        "input_ids": torch.tensor([ids + [pad_id] * (length - len(ids)) for ids, _ in batch]),
        "labels": torch.tensor([labels + [_IGNORED] * (length - len(labels)) for _, labels in batch]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in batch]),
    }
