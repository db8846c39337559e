"""Tunesmith's chat templates: equal to the published formats, masked correctly, and chosen by family."""

from itertools import pairwise
from pathlib import Path

import pytest
import trl
from transformers import PreTrainedTokenizerBase

from app.core.datasets.rows import Conversation, Message
from app.core.errors import InvalidRequest
from tests.worker.families import MODEL_TYPES, make_tokenizer
from worker.templates.choice import TemplateSource, set_template
from worker.templates.families import FAMILIES, TEMPLATES, find_family
from worker.templates.prompt_check import check_prompts
from worker.templates.renderer import encode_rendered, end_token_ids, render
from worker.templates.token_rows import IGNORED, encode_row, format_rows

SYSTEM = Message("system", "Be brief.")
ONE_EXCHANGE = (Message("user", "How?"), Message("assistant", "So. 🎉"))
TWO_EXCHANGES = (*ONE_EXCHANGE, Message("user", "And then?"), Message("assistant", "Read  on."))
NO_SYSTEM = {"gemma"}
# The Hub's own templates of these models, as TRL has them.
PUBLISHED = {"llama3": "llama3", "gemma": "gemma", "gemma3": "gemma3", "phi3": "phi3", "chatml": "qwen2_5"}

NOT_COMPARED = {("gemma", True), ("chatml", False)}

EXPECTED = {
    ("llama2", "system"): (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHow? [/INST] So. 🎉 </s>"
        "<s>[INST] And then? [/INST] Read  on. </s>"
    ),
    ("llama2", "plain"): "<s>[INST] How? [/INST] So. 🎉 </s><s>[INST] And then? [/INST] Read  on. </s>",
    ("mistral", "system"): (
        "<s> [INST] Be brief.\n\nHow? [/INST] So. 🎉</s> [INST] And then? [/INST] Read  on.</s>"
    ),
    ("mistral", "plain"): "<s> [INST] How? [/INST] So. 🎉</s> [INST] And then? [/INST] Read  on.</s>",
    ("mistral_v3", "system"): (
        "<s>[INST] Be brief.\n\nHow?[/INST] So. 🎉</s>[INST] And then?[/INST] Read  on.</s>"
    ),
    ("mistral_v3", "plain"): "<s>[INST] How?[/INST] So. 🎉</s>[INST] And then?[/INST] Read  on.</s>",
    ("chatml", "system"): (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow?<|im_end|>\n"
        "<|im_start|>assistant\nSo. 🎉<|im_end|>\n<|im_start|>user\nAnd then?<|im_end|>\n"
        "<|im_start|>assistant\nRead  on.<|im_end|>\n"
    ),
    ("plain", "system"): (
        "<s>System: Be brief.\nUser: How?\nAssistant: So. 🎉</s>\nUser: And then?\nAssistant: Read  on.</s>\n"
    ),
}
LEARNED = {
    "llama2": " So. 🎉 </s>| Read  on. </s>",
    "mistral": " So. 🎉</s>| Read  on.</s>",
    "mistral_v3": " So. 🎉</s>| Read  on.</s>",
    "llama3": "So. 🎉<|eot_id|>|Read  on.<|eot_id|>",
    "chatml": "So. 🎉<|im_end|>|Read  on.<|im_end|>",
    "gemma": "So. 🎉<end_of_turn>|Read  on.<end_of_turn>",
    "gemma3": "So. 🎉<end_of_turn>|Read  on.<end_of_turn>",
    "phi3": "So. 🎉<|end|>|Read  on.<|end|><|endoftext|>",
    "plain": " So. 🎉</s>| Read  on.</s>",
}


def base_tokenizer(family: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model with its family's template."""
    tokenizer = make_tokenizer(family)
    set_template(tokenizer, model_type=MODEL_TYPES[family])
    return tokenizer


def conversation(family: str, messages: tuple[Message, ...] = TWO_EXCHANGES) -> Conversation:
    return Conversation(messages if family in NO_SYSTEM else (SYSTEM, *messages))


def published(name: str) -> str:
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


def learned(row: Conversation, tokenizer: PreTrainedTokenizerBase) -> str:
    """The learned text of the assistant's turns, with | between them."""
    labels = encode_row(row, tokenizer, assistant_only=True).labels
    runs: list[list[int]] = [[]]
    for label in labels:
        runs[-1].append(label) if label != IGNORED else runs.append([])
    return "|".join(tokenizer.decode(run) for run in runs if run)


def test_every_template_has_a_family_or_is_the_plain_one() -> None:
    assert {family.name for family in FAMILIES} | {"plain"} == set(TEMPLATES) == set(MODEL_TYPES)


@pytest.mark.parametrize(("family", "kind"), EXPECTED)
def test_text_is_exactly_that_of_the_format(family: str, kind: str) -> None:
    messages = (SYSTEM, *TWO_EXCHANGES) if kind == "system" else TWO_EXCHANGES

    text = render(base_tokenizer(family), messages, add_generation_prompt=False)

    assert text == EXPECTED[family, kind]


@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("turns", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("family", "with_system"),
    # Gemma's refuses a system turn; Qwen's puts one of its own in where there is none.
    [(name, on) for name in PUBLISHED for on in (False, True) if (name, on) not in NOT_COMPARED],
)
def test_text_is_that_of_the_published_template(
    family: str, with_system: bool, turns: int, add_generation_prompt: bool
) -> None:
    messages = ((SYSTEM,) if with_system else ()) + TWO_EXCHANGES[:turns]
    ours = base_tokenizer(family)
    theirs = make_tokenizer(family, template=published(PUBLISHED[family]))

    assert render(ours, messages, add_generation_prompt=add_generation_prompt) == render(
        theirs, messages, add_generation_prompt=add_generation_prompt
    )


def test_the_reference_recipe_is_rendered_as_it_was_trained() -> None:
    messages = (SYSTEM, *ONE_EXCHANGE)

    text = render(base_tokenizer("llama2"), messages, add_generation_prompt=False)

    assert text == "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHow? [/INST] So. 🎉 </s>"


@pytest.mark.parametrize("family", LEARNED)
def test_answers_and_their_ends_are_learned_and_nothing_else(family: str) -> None:
    assert learned(conversation(family), base_tokenizer(family)) == LEARNED[family]


@pytest.mark.parametrize("family", LEARNED)
def test_one_exchange_has_one_beginning_token(family: str) -> None:
    tokenizer = base_tokenizer(family)

    text = render(tokenizer, conversation(family, ONE_EXCHANGE).messages, add_generation_prompt=False)

    has_beginning = tokenizer.bos_token is not None and family != "phi3"
    assert encode_rendered(tokenizer, text).count(tokenizer.bos_token_id) == int(has_beginning)


@pytest.mark.parametrize("family", LEARNED)
def test_serving_stops_at_the_end_of_a_turn(family: str) -> None:
    tokenizer = base_tokenizer(family)
    labels = encode_row(conversation(family), tokenizer, assistant_only=True).labels
    first_end = next(label for label, following in pairwise(labels) if label >= 0 > following)

    assert {first_end, tokenizer.eos_token_id} <= end_token_ids(tokenizer, None)


@pytest.mark.parametrize("family", LEARNED)
@pytest.mark.parametrize("messages", [ONE_EXCHANGE, TWO_EXCHANGES])
def test_prompts_are_served_as_they_were_trained(family: str, messages: tuple[Message, ...]) -> None:
    tokenizer = base_tokenizer(family)
    rows = [(1, conversation(family, messages))]

    check_prompts(format_rows(rows, tokenizer, assistant_only=True, max_length=512).samples, tokenizer)


def test_gemma_refuses_a_system_turn_and_says_what_to_do() -> None:
    with pytest.raises(InvalidRequest, match="knows no system turn") as caught:
        render(base_tokenizer("gemma"), (SYSTEM, *ONE_EXCHANGE), add_generation_prompt=False)

    assert "first user turn" in (caught.value.hint or "")


@pytest.mark.parametrize("family", ["llama2", "mistral", "mistral_v3", "gemma", "gemma3"])
def test_turns_out_of_order_are_refused_where_the_format_has_no_place_for_them(family: str) -> None:
    with pytest.raises(InvalidRequest, match="take turns"):
        render(base_tokenizer(family), (ONE_EXCHANGE[0], ONE_EXCHANGE[0]), add_generation_prompt=True)


@pytest.mark.parametrize("family", MODEL_TYPES)
def test_a_base_model_gets_the_template_of_its_family(family: str) -> None:
    tokenizer = make_tokenizer(family)

    source = set_template(tokenizer, model_type=MODEL_TYPES[family])

    assert tokenizer.chat_template == TEMPLATES[family]
    assert source is (TemplateSource.PLAIN if family == "plain" else TemplateSource.FAMILY)


@pytest.mark.parametrize(
    ("model_type", "tokens", "name"),
    [
        ("llama", {"<|im_start|>", "<|im_end|>", "<s>", "</s>"}, "chatml"),
        ("gemma2", {"<bos>", "<eos>"}, None),
        ("llama", {"<|endoftext|>"}, None),
        (None, {"<s>", "</s>"}, None),
    ],
)
def test_control_tokens_tell_families_apart(
    model_type: str | None, tokens: set[str], name: str | None
) -> None:
    family = find_family(model_type, tokens)

    assert (family.name if family else None) == name
