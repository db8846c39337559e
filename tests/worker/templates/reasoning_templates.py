"""Published chat templates, their control tokens, and what is learned of a conversation with each.

Those that TRL has are read from it; the others are short forms of the publishers' own, with the same text.
"""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from tests.worker.families import DEEPSEEK, with_controls
from tests.worker.templates.test_families import published

GRANITE = (
    "{% set system = \"Today's Date: \" + strftime_now('%B %d, %Y') + '.' %}{% set turns = messages %}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set turns = messages[1:] %}"
    "{% endif %}{{ '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\n' }}"
    "{% for message in turns %}"
    "{{ '<|start_of_role|>' + message.role + '<|end_of_role|>' + message.content + '<|end_of_text|>\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
    "{% endfor %}"
)
# Mistral's own puts the system message into the last turn, where that is the user's: into prompts alone.
MISTRAL = (
    "{% set turns = messages[1:] if messages[0].role == 'system' else messages %}{{ bos_token }}"
    "{% for message in turns %}{% if message.role == 'user' %}"
    "{{ '[INST] ' + (messages[0].content + '\n\n' if loop.last and messages[0].role == 'system' else '') }}"
    "{{ message.content + '[/INST]' }}"
    "{% else %}{{ ' ' + message.content|trim + eos_token }}{% endif %}{% endfor %}"
)
# SmolLM3's markers enclose the header, too.
SMOLLM3 = (
    "{{ '<|im_start|>system\n## Metadata\n\nToday Date: ' + strftime_now('%d %B %Y') + '\n' }}"
    "{{ (messages[0].content if messages[0].role == 'system' else '') + '<|im_end|>\n' }}"
    "{% for message in messages if message.role != 'system' %}{% if message.role == 'user' %}"
    "{{ '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}{% else %}{% generation %}"
    "{{ '<|im_start|>assistant\n' + message.content.lstrip('\n') + '<|im_end|>\n' }}{% endgeneration %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GLM_4 = (
    "[gMASK]<sop>{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
OLMO_2 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if not loop.last or message.role != 'assistant' %}{{ '\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THOUGHTS = ("<think>\nAdd one to 0.\n</think>\n\n", "<think>\nAdd two.\n</think>\n\n")
EMPTY = "<think>\n\n</think>\n\n"


@dataclass(frozen=True)
class Published:
    """A template, its control tokens, and the learned text around the answers 1 and 3, which is `{}`.

    `thoughts` is for answers with thoughts, an earlier and the last one; None where their prompt allows none.
    """

    controls: tuple[str, ...]
    answers: tuple[str, str]
    thoughts: tuple[str, str] | None
    template: str | None = None
    has_system: bool = True

    def tokenizer(self, name: str) -> PreTrainedTokenizerFast:
        return with_controls(self.controls, template=self.template or published(name))


def plain(
    controls: tuple[str, ...], end: str, last: str | None = None, before: str = "", **fields
) -> Published:
    """A template that writes answers as they are, thoughts included."""
    ends = (end, last or end)
    return Published(
        controls,
        tuple(f"{before}{{}}{one}" for one in ends),
        tuple(f"{before}{thought}{{}}{one}" for thought, one in zip(THOUGHTS, ends, strict=True)),
        **fields,
    )


def opening(end: str, controls: tuple[str, ...], shown: str = "", between: str = "") -> Published:
    """One whose prompts open a thought, and which leaves out the thoughts of earlier turns."""
    return Published(
        controls,
        (f"{shown}{{}}{end}", f"\n</think>\n\n{{}}{end}"),
        (f"{shown}{between}{{}}{end}", f"Add two.\n</think>\n\n{{}}{end}"),
    )


LLAMA_3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
PHI_3 = ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
GEMMA = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
FINAL = "<|channel|>final<|message|>"
TEMPLATES = {
    "qwen2_5": plain(CHATML, "<|im_end|>"),
    "qwen3": Published(
        CHATML,
        ("{}<|im_end|>", EMPTY + "{}<|im_end|>"),
        ("{}<|im_end|>", THOUGHTS[1] + "{}<|im_end|>"),
    ),
    "qwen3_instruct_2507": plain(CHATML, "<|im_end|>"),
    "qwen3_5_think": opening("<|im_end|>", CHATML),
    "qwen3_5_nothink": Published(CHATML, ("{}<|im_end|>",) * 2, None),
    "qwen3_6": opening("<|im_end|>", CHATML),
    "gptoss": plain(
        ("<|return|>", "<|call|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>"),
        "",
        "<|return|>",
        FINAL,
    ),
    "deepseek_r1_distill": opening(DEEPSEEK[1], DEEPSEEK, between="\n\n"),
    "deepseekv3": opening(DEEPSEEK[1], DEEPSEEK, between="\n\n"),
    "phi3": plain(PHI_3, "<|end|>", "<|end|>\n<|endoftext|>"),
    "phi3_5": plain(PHI_3, "<|end|>", "<|end|>\n<|endoftext|>"),
    "llama3": plain(LLAMA_3, "<|eot_id|>"),
    "llama3_1": plain(LLAMA_3, "<|eot_id|>"),
    "llama3_2": plain(LLAMA_3, "<|eot_id|>"),
    "gemma": plain(GEMMA, "<end_of_turn>", has_system=False),
    "gemma3": plain(GEMMA, "<end_of_turn>"),
    "glm4moe": Published(
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
        ("\n<think></think>\n{}", "\n<think></think>\n{}<|endoftext|>"),
        ("\n<think></think>\n{}", "\n<think>Add two.</think>\n{}<|endoftext|>"),
    ),
    "nemotron_3_nano": opening("<|im_end|>", CHATML, "<think></think>", "\n\n"),
    "lfm2": plain(CHATML, "<|im_end|>"),
    "lfm2_2_5": Published(CHATML, ("{}<|im_end|>",) * 2, ("{}<|im_end|>", THOUGHTS[1] + "{}<|im_end|>")),
    "cohere": plain(
        ("<bos>", "<eos>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"), "<|END_OF_TURN_TOKEN|>"
    ),
    "granite": plain(
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"), "<|end_of_text|>", template=GRANITE
    ),
    "mistral": plain(("<s>", "</s>", "[INST]", "[/INST]"), "</s>", before=" ", template=MISTRAL),
    "smollm3": plain(CHATML, "<|im_end|>", template=SMOLLM3),
    "glm4": plain(
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>"),
        "",
        "<|endoftext|>",
        template=GLM_4,
    ),
    "olmo2": plain(("<|endoftext|>",), "<|endoftext|>", template=OLMO_2),
}
