"""The choice of a tokenizer's chat template, and the errors of unusable ones."""

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tokenizers.processors import TemplateProcessing

from app.core.datasets.rows import Conversation
from app.core.errors import InvalidRequest
from tests.worker.families import make_tokenizer
from tests.worker.templates.test_families import LEARNED, TWO_EXCHANGES, learned, published
from worker.templates.choice import TemplateSource, set_template
from worker.templates.families import TEMPLATES
from worker.templates.renderer import render

CHATTY = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '### ' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}{% endgeneration %}"
    "{{ eos_token }}{% else %}{{ message['content'] }}{% endif %}{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### assistant\\n' }}{% endif %}"
)


def test_the_models_own_template_is_unchanged() -> None:
    own = published("phi3")
    tokenizer = make_tokenizer("phi3", template=own)

    assert set_template(tokenizer, model_type="phi3") is TemplateSource.MODEL
    assert tokenizer.chat_template == own


def test_the_jobs_template_comes_before_the_models_own() -> None:
    tokenizer = make_tokenizer("llama3", template=published("llama3"))

    assert set_template(tokenizer, model_type="llama", wanted=CHATTY) is TemplateSource.JOB
    assert tokenizer.chat_template == CHATTY


def test_of_several_templates_the_default_is_taken() -> None:
    tokenizer = make_tokenizer("llama2")
    tokenizer.chat_template = {"default": CHATTY, "tool_use": "tools", "rag": "documents"}

    assert set_template(tokenizer, model_type="llama") is TemplateSource.MODEL
    only = make_tokenizer("llama2", template=CHATTY)
    assert render(tokenizer, TWO_EXCHANGES, add_generation_prompt=False) == render(
        only, TWO_EXCHANGES, add_generation_prompt=False
    )


def test_an_end_of_turn_outside_of_the_markers_is_learned_all_the_same() -> None:
    tokenizer = make_tokenizer("llama2")
    set_template(tokenizer, wanted=CHATTY)

    assert learned(Conversation(TWO_EXCHANGES), tokenizer) == "So. 🎉</s>|Read  on.</s>"


def test_a_template_that_ends_no_answer_gets_the_end_token() -> None:
    tokenizer = make_tokenizer("llama2")
    set_template(tokenizer, wanted=CHATTY.replace("{{ eos_token }}", ""))

    assert learned(Conversation(TWO_EXCHANGES), tokenizer) == "So. 🎉|Read  on.\n</s>"


@pytest.mark.parametrize("name", ["llama3", "gemma", "phi3", "qwen2_5"])
def test_several_turns_are_masked_with_a_published_template(name: str) -> None:
    """Phi-3's template ends a finished conversation unlike a continued one, so only markers can mask it."""
    family = {"qwen2_5": "chatml"}.get(name, name)
    tokenizer = make_tokenizer(family, template=published(name))
    set_template(tokenizer)

    assert learned(Conversation(TWO_EXCHANGES), tokenizer) == LEARNED[family]


def test_markers_in_a_models_own_template_are_used() -> None:
    """Without markers, the template's text after a turn would count as the assistant's."""
    own = TEMPLATES["chatml"].replace("{{- '\\n' -}}", "{{- 'noise\\n' -}}")
    tokenizer = make_tokenizer("chatml", template=own)

    assert learned(Conversation(TWO_EXCHANGES), tokenizer) == "So. 🎉<|im_end|>|Read  on.<|im_end|>"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ bos_token }}{{ messages[0]['content'] }}", "leaves out a turn: 'answer 1'"),
        ("{{ bos_token }}{{ messages[0]['content'] + 1 }}", "refuses this conversation"),
        ("{{ bos_token }}{{ messages[0]['content'].nothing() }}", "has no attribute 'nothing'"),
        ("{{ ''.__class__.__mro__ }}{{ messages }}", "unsafe"),
        ("{{ raise_exception('not today') }}{{ messages }}", "not today"),
        (CHATTY.replace("{{ bos_token }}", "{{ bos_token * 2 }}"), "'<s>' 2 times"),
        (CHATTY.replace("'### assistant\\n'", "'### Assistant\\n'"), "unlike the beginning of the whole"),
        (CHATTY.replace("'### assistant\\n'", "''"), "between the prompt and its"),
        (
            CHATTY.replace("{% generation %}", "").replace("{% endgeneration %}", "")
            + "{% generation %}{% endgeneration %}",
            "do not enclose the assistant's text",
        ),
    ],
)
def test_an_unusable_template_is_refused_with_its_problem(template: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        set_template(make_tokenizer("llama2"), wanted=template)

    assert words in caught.value.message


def test_a_template_without_the_beginning_token_is_refused_where_the_model_expects_one() -> None:
    tokenizer = make_tokenizer("llama2")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )

    with pytest.raises(InvalidRequest, match="leaves out the beginning token '<s>'"):
        set_template(tokenizer, wanted=CHATTY.replace("{{ bos_token }}", ""))


@pytest.fixture
def fast_thread_switching() -> Iterator[None]:
    """Python switches threads every microsecond, so that races on shared state become likely."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("fast_thread_switching")
def test_masks_are_right_while_other_threads_render() -> None:
    """transformers tracks marker positions in an object that all renderings of a template share."""
    tokenizer = make_tokenizer("llama2")
    set_template(tokenizer, model_type="llama")
    row = Conversation(TWO_EXCHANGES)
    stop = threading.Event()

    def render_on() -> None:
        while not stop.is_set():
            render(tokenizer, row.messages, add_generation_prompt=False)

    others = [threading.Thread(target=render_on) for _ in range(2)]
    for other in others:
        other.start()
    with ThreadPoolExecutor(2) as maskers:
        found = set(maskers.map(lambda _: learned(row, tokenizer), range(100)))
    stop.set()
    for other in others:
        other.join()

    assert found == {LEARNED["llama2"]}


def test_a_conversation_without_a_message_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least one message"):
        render(make_tokenizer("llama3", template=published("llama3")), [], add_generation_prompt=True)
