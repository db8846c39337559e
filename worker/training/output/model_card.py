"""Writes an adapter's README.md, the model card of the Hub: what it is, how it was trained, how to use it."""

import json
from collections.abc import Collection, Mapping
from string import Template

from app.core.specs.job import JobSpec

CARD = "README.md"

_CARD = Template("""---
base_model: $base_model_yaml
library_name: peft
pipeline_tag: text-generation
tags:
- base_model:adapter:$base_model
- lora
- tunesmith
---

# $name

A LoRA adapter for `$base_model`, trained by Tunesmith's job `$job`.

## Training

| | |
| --- | --- |
$facts

Every setting of the job is in `tunesmith.json`, beside this file. These differ from the defaults:

```json
$settings
```

## Results

| | |
| --- | --- |
$results

Losses are means per trained token.

## Use

With [PEFT](https://huggingface.co/docs/peft); the tokenizer here carries the chat template of the training:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
base = AutoModelForCausalLM.from_pretrained("$base_model")
model = PeftModel.from_pretrained(base, folder)
messages = [{"role": "user", "content": "Hello"}]
prompt = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
answer = model.generate(**prompt, max_new_tokens=200)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
```

On the Tunesmith that trained it:

```sh
curl http://127.0.0.1:8000/generate -H 'Content-Type: application/json' \\
  -d '{"adapter": "$name", "messages": [{"role": "user", "content": "Hello"}]}'
```

## Made with

$versions
""")


def write_card(
    *,
    job: str,
    spec: JobSpec,
    facts: Mapping[str, object],
    results: Mapping[str, object],
    versions: Mapping[str, str],
    targets: Collection[str] | str | None = None,
) -> str:
    """The text of the card. `targets`: modules that the adapter is on."""
    name = spec.name or job
    return _CARD.substitute(
        base_model=spec.base_model,
        base_model_yaml=json.dumps(spec.base_model),
        name=name,
        job=job,
        facts=_table({"Base model": f"`{spec.base_model}`", **facts, **_recipe(spec, targets)}),
        settings=json.dumps(_chosen(spec), indent=2, ensure_ascii=False),
        results=_table(results),
        versions=", ".join(f"{package} {version}" for package, version in versions.items()),
    )


def _recipe(spec: JobSpec, targets: Collection[str] | str | None) -> dict[str, object]:
    lora, training, quantization = spec.lora, spec.training, spec.quantization
    targets = targets or lora.target_modules or "PEFT's default"
    own_names = {name.rpartition(".")[2] for name in targets}
    return {
        "LoRA": f"r = {lora.r}, alpha = {lora.alpha:g}, dropout = {lora.dropout:g}, "
        f"on {targets if isinstance(targets, str) else ', '.join(sorted(own_names))}",
        "Base weights": f"4-bit {quantization.bnb_4bit_quant_type}"
        if quantization.load_in_4bit
        else "not quantized",
        "Optimizer": f"{training.optim}, learning rate {training.learning_rate:g} "
        f"({training.lr_scheduler_type})",
        "Batch": f"{training.per_device_train_batch_size} rows a pass, "
        f"passes a step: {training.gradient_accumulation_steps}"
        + (f" on each of {spec.resources.ranks} devices" if spec.resources.ranks > 1 else ""),
        "Learned from": _learned_from(spec),
        "Seed": training.seed,
    }


def _learned_from(spec: JobSpec) -> str:
    if spec.preferences:
        rows = "answers with labels" if spec.method == "kto" else "comparisons of two answers"
        return f"{rows}, by {spec.method.upper()} with beta {spec.preferences.beta:g}"
    if spec.training.assistant_only_loss:
        return "the assistant's turns"
    return "whole rows (of prompt + completion rows: the completion)"


def _chosen(spec: JobSpec) -> dict[str, object]:
    """Settings that differ from the defaults, without the chat template, which has its own file."""
    return spec.model_dump(mode="json", exclude_defaults=True, exclude={"chat_template"})


def _table(rows: Mapping[str, object]) -> str:
    return "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items() if value is not None)


def _cell(value: object) -> str:
    """A value on one line, with the characters escaped that have a meaning in a table."""
    text = (
        f"{value:,.4g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
