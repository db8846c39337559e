"""The README.md of a merged model: what it was made from, how it was verified, how to use it."""

import json
from string import Template

from app.core.exports.results import Agreement
from app.core.specs.export import BaseWeights

CARD = "README.md"

_CARD = Template("""---
base_model: $base_model_yaml
library_name: $library
pipeline_tag: text-generation
tags:
- lora
- merged
- tunesmith
---

# $name

`$base_model` with the LoRA adapter `$name` merged into it by Tunesmith. It is used as any model is: PEFT is
not needed.

$base

## Verification

The files were loaded afresh and compared with the live adapter (PEFT on the base weights it was trained
against), on $prompts prompts, before they were handed out.

| | |
| --- | --- |
| Mean divergence of the next token (KL) | $kl nats |
| Same most likely token | $match |
| Same greedy answer | $answers |
| The base model without the adapter, for comparison (KL) | $adapter_kl nats |

$notes""")

EXPLAINED = {
    BaseWeights.DEQUANTIZED: "The adapter was trained on 4-bit base weights. It is merged into the base "
    "weights quantized to 4 bits and dequantized: what it was trained against, and what Tunesmith serves.",
    BaseWeights.ORIGINAL: "The adapter was trained on 4-bit base weights and is merged into the base model's "
    "original ones: nearer to the base model, and a little away from what was trained. What rounding to "
    "4 bits had changed, and the adapter had learned to live with, is not there.",
    None: "The adapter was trained on base weights that were not quantized, and is merged into them.",
}
EXPLAINED_LORA = (
    "The adapter was trained on 4-bit base weights, and was compared on a GGUF file of the base weights "
    'quantized to 4 bits and dequantized; "with_base" makes that file. On one of the base model\'s own '
    "weights it answers only nearly as the live adapter does."
)


def write_card(
    *,
    name: str,
    base_model: str,
    base: BaseWeights | None,
    agreement: Agreement,
    notes: list[str],
    library: str,
) -> str:
    """The card's text. `base` is None where the adapter was not trained in 4 bits."""
    return _CARD.substitute(
        name=name,
        base_model=base_model,
        base_model_yaml=json.dumps(base_model),
        library=library,
        base=EXPLAINED[base],
        prompts=agreement.prompts,
        kl=f"{agreement.mean_kl:.2g}",
        match=f"{agreement.greedy_match:.1%}",
        answers=f"{agreement.answers_equal:.0%}",
        adapter_kl=f"{agreement.adapter_kl:.2g}",
        notes="".join(f"{note}\n" for note in notes),
    )
