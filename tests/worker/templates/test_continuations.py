"""Text after a prompt: its tokens begin with the prompt's, and decoded they are the text, spaces included."""

from collections.abc import Callable

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from app.core.datasets.rows import Completion, Conversation, Message
from tests.worker.families import make_tokenizer
from worker.templates.continuations import encode_completion, encode_with_border, encode_with_spans
from worker.templates.prompt_check import check_prompts
from worker.templates.token_rows import IGNORED, encode_row, format_rows

_MERGES = [
    ("▁", "▁"),
    *[("a", "r"), ("i", "s"), ("ar", "is"), ("P", "aris"), ("▁", "Paris")],
    *[("▁", "A"), ("▁", "B"), ("▁", "o"), ("▁o", "f"), (":", "▁")],
]
_LETTERS = sorted({letter for pair in _MERGES for letter in pair if len(letter) == 1} | set("tclweu.?[]/NST"))
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_VOCABULARY = ["<unk>", "<s>", "</s>", *_BYTES, *_LETTERS, *("".join(pair) for pair in _MERGES)]


def backend() -> Tokenizer:
    """BPE with byte fallback and tokens of several spaces, as SentencePiece made it for Llama 2."""
    vocabulary = {token: number for number, token in enumerate(_VOCABULARY)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, _MERGES, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", "</s>")])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def with_normalizer() -> PreTrainedTokenizerFast:
    """As Llama 2's tokenizer.json has it."""
    tokenizer = backend()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return wrapped(tokenizer)


def with_metaspace(scheme: str) -> PreTrainedTokenizerFast:
    tokenizer = backend()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return wrapped(tokenizer)


def llama_tokenizer(*, legacy: bool) -> PreTrainedTokenizerBase:
    """transformers' own class, as it is made from a SentencePiece model."""
    vocabulary = {token: number for number, token in enumerate(_VOCABULARY)}
    return LlamaTokenizer(vocab=vocabulary, merges=_MERGES, legacy=legacy)


MAKERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "normalizer": with_normalizer,
    "metaspace always": lambda: with_metaspace("always"),
    "metaspace first": lambda: with_metaspace("first"),
    "legacy": lambda: llama_tokenizer(legacy=True),
    "not legacy": lambda: llama_tokenizer(legacy=False),
    "byte level": lambda: make_tokenizer("llama2"),
}
PAIRS = [
    ("A: ", " Paris."),
    ("A:", " Paris."),
    ("A: ", "Paris."),
    ("A:", "Paris."),
    ("A:  ", "  Paris"),
    ("A:\n", "\nParis"),
    ("A:\n ", " \n Paris"),
    ("A:", "\n\nParis"),
    ("A: ", " 🎉 Paris"),
    ("A: 🎉", "🎉"),
    ("A: ", " Paris</s>"),
    ("A: ", " "),
]


@pytest.fixture(params=MAKERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return MAKERS[request.param]()


@pytest.mark.parametrize(("prompt", "completion"), PAIRS)
def test_a_prompt_and_its_completion_are_the_text_and_no_more_spaces(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str
) -> None:
    prompt_ids, completion_ids = encode_completion(tokenizer, prompt, completion)

    assert prompt_ids == tokenizer(prompt)["input_ids"]
    alone = tokenizer.decode(prompt_ids)
    assert tokenizer.decode(prompt_ids + completion_ids).removeprefix(alone) == completion


def test_the_completion_begins_with_the_word_of_the_vocabulary() -> None:
    """Not with an empty word and a second space."""
    tokenizer = with_normalizer()

    _prompt_ids, completion_ids = encode_completion(tokenizer, "A: ", " Paris.")

    assert tokenizer.convert_ids_to_tokens(completion_ids) == ["▁Paris", "."]


@pytest.mark.parametrize(("prompt", "rest"), PAIRS)
def test_rendered_text_is_encoded_the_same_with_and_without_spans(
    tokenizer: PreTrainedTokenizerBase, prompt: str, rest: str
) -> None:
    text = prompt + rest
    input_ids = encode_with_border(tokenizer, text, len(prompt))

    with_spans, spans = encode_with_spans(tokenizer, text, len(prompt))

    assert with_spans == input_ids
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert input_ids[: len(prompt_ids)] == prompt_ids
    assert all(start >= len(prompt) for start, _end in spans[len(prompt_ids) :])
    assert all(end <= len(prompt) for _start, end in spans[: len(prompt_ids)])
    assert spans[-1][1] == len(text)


def test_a_row_is_learned_as_it_is_written(tokenizer: PreTrainedTokenizerBase) -> None:
    row = Completion("A: ", " Paris.")

    encoded = encode_row(row, tokenizer, assistant_only=False)
    input_ids, labels = encoded.input_ids, encoded.labels

    assert tokenizer.decode(input_ids).removeprefix("<s>").strip() == "A:  Paris.</s>"
    learned = [label for label in labels if label != IGNORED]
    assert tokenizer.decode(learned).strip() == "Paris.</s>"


def test_an_answer_after_a_prompt_that_ends_with_a_space_has_its_own_spaces(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """A template that writes a space before the answer, whose tokens would swallow it."""
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}{{ message.role[0]|upper + ': ' + message.content }}"
        "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A: {% endif %}"
    )
    row = Conversation((Message("user", "B?"), Message("assistant", " Paris.")))

    formatted = format_rows([(1, row)], tokenizer, assistant_only=True, max_length=64)

    check_prompts(formatted.samples, tokenizer)
    assert "A:  Paris." in tokenizer.decode(formatted.rows[0].input_ids)
