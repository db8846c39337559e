"""Completions, log-probabilities and embeddings with the official client."""

import math
from pathlib import Path

import openai
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.end_to_end.openai.calls import MODEL, QUANTIZATION, chat, complete
from tests.worker.inference.conftest import ADAPTERS, peft_warnings_ignored, save_adapter


def test_base_model_and_adapters_answer_differently(client: openai.OpenAI) -> None:
    answers = {name: complete(client, model=name) for name in (MODEL, "attention", "ad_0000000000000001")}

    assert len({answer.choices[0].text for answer in answers.values()}) == 3
    assert {answer.usage.prompt_tokens for answer in answers.values()} == {answers[MODEL].usage.prompt_tokens}


def test_logprobs_are_of_the_tokens_that_make_the_text(client: openai.OpenAI) -> None:
    choice = chat(client, logprobs=True, top_logprobs=5).choices[0]

    content = choice.logprobs.content
    text = b"".join(bytes(one.bytes) for one in content).decode(errors="replace")
    assert text.rstrip("\N{REPLACEMENT CHARACTER}") == choice.message.content
    for one in content:
        probabilities = [math.exp(other.logprob) for other in one.top_logprobs]
        assert len(probabilities) == 5
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) <= 1
        # Greedy: the token itself is the likeliest.
        assert (one.top_logprobs[0].bytes, one.top_logprobs[0].logprob) == (one.bytes, one.logprob)


def test_logprobs_of_a_stream_are_those_of_the_answer(client: openai.OpenAI) -> None:
    whole = complete(client, logprobs=2).choices[0].logprobs
    streamed = [chunk.choices[0].logprobs for chunk in complete(client, logprobs=2, stream=True)]

    chunks = [logprobs for logprobs in streamed if logprobs]
    assert [token for one in chunks for token in one.tokens] == whole.tokens
    assert [offset for one in chunks for offset in one.text_offset] == whole.text_offset


def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(client: openai.OpenAI) -> None:
    text = complete(client).choices[0].text
    stop = text[len(text) // 2 :][:2]

    choice = complete(client, stop=[stop]).choices[0]

    assert choice.text == text[: text.index(stop)]
    assert choice.finish_reason == "stop"


def test_bias_and_penalties_change_what_is_said(client: openai.OpenAI) -> None:
    biased = complete(client, logit_bias={"40": 100}, logprobs=0).choices[0]
    assert len(set(biased.logprobs.tokens)) == 1

    plain, penalized = (
        chat(client, logprobs=True, **penalties).choices[0].logprobs.content
        for penalties in ({}, {"frequency_penalty": 2, "presence_penalty": 2})
    )
    assert len({tuple(one.bytes) for one in penalized}) > len({tuple(one.bytes) for one in plain})


def test_prompts_may_be_many_and_may_be_tokens(client: openai.OpenAI) -> None:
    texts = ["How do I", "Send POST", "read its events"]
    alone = [complete(client, prompt=text).choices[0].text for text in texts]

    together = complete(client, prompt=texts)
    as_tokens = complete(client, prompt=[[40, 41, 42], [43]])

    assert [choice.text for choice in together.choices] == alone
    assert as_tokens.usage.prompt_tokens == 4


@pytest.mark.parametrize("name", [MODEL, "everything"])
def test_embeddings_are_those_of_transformers(
    client: openai.OpenAI, models_folder: Path, tmp_path: Path, name: str
) -> None:
    folder = models_folder / MODEL
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["How do I cancel a job?", "Send POST to the jobs endpoint, then read its events. " * 5]
    extra = {"quantization": QUANTIZATION} if name == MODEL else {}
    found = client.embeddings.create(model=name, input=texts, extra_body=extra)
    assert found.usage.prompt_tokens == sum(len(tokenizer(text).input_ids) for text in texts)
    model = AutoModelForCausalLM.from_pretrained(folder)
    if name != MODEL:
        with peft_warnings_ignored():
            seed = ["attention", "everything"].index(name)
            saved = save_adapter(folder, tmp_path / name, seed=seed, **ADAPTERS[name])
            model = PeftModel.from_pretrained(model, saved)
    for text, one in zip(texts, found.data, strict=True):
        with torch.no_grad():
            outputs = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        mean = outputs.hidden_states[-1][0].mean(0)
        torch.testing.assert_close(torch.tensor(one.embedding), mean / mean.norm(), atol=2e-5, rtol=0)


def test_a_text_that_is_too_long_to_embed_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=MODEL, input=["Hi", "word " * 500])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")


def test_a_benchmark_reads_the_logprobs_of_its_prompts(
    client: openai.OpenAI, models_folder: Path, tmp_path: Path
) -> None:
    """As lm-evaluation-harness 0.4.13 reads them: all tokens of the prompt, and always one that is made."""
    tokenizer = AutoTokenizer.from_pretrained(models_folder / MODEL)
    model = AutoModelForCausalLM.from_pretrained(models_folder / MODEL)
    with peft_warnings_ignored():
        saved = save_adapter(models_folder / MODEL, tmp_path / "adapter", seed=1, **ADAPTERS["everything"])
        adapted = PeftModel.from_pretrained(model, saved).eval()
    prompts = [
        tokenizer.encode(text, add_special_tokens=False) for text in ("Send POST to", "How do I cancel")
    ]

    options = {"max_tokens": 1, "logprobs": 1, "echo": True, "seed": 1234}
    answers = complete(client, model="everything", prompt=prompts, **options)
    ended = complete(
        client, model="everything", prompt=prompts, logit_bias={str(tokenizer.eos_token_id): 100}, **options
    )

    for choice, other, token_ids in zip(answers.choices, ended.choices, prompts, strict=True):
        ids = torch.tensor([token_ids])
        with torch.no_grad():
            logprobs = adapted(input_ids=ids).logits[0, :-1].log_softmax(-1)
        wanted = logprobs.gather(1, ids[0, 1:, None]).squeeze(1).tolist()
        first, *found = choice.logprobs.token_logprobs[:-1]
        assert first is None
        assert found == pytest.approx(wanted, abs=1e-3)
        assert other.logprobs.token_logprobs[:-1] == choice.logprobs.token_logprobs[:-1]
        assert len(other.logprobs.tokens) == len(token_ids) + 1
        greedy = [
            max(top.values()) == logprob
            for top, logprob in zip(choice.logprobs.top_logprobs[1:-1], found, strict=True)
        ]
        assert greedy == (logprobs.argmax(-1) == ids[0, 1:]).tolist()
    assert {choice.finish_reason for choice in ended.choices} == {"stop"}
    read = complete(client, model="everything", prompt=prompts, **{**options, "max_tokens": 0})
    assert [choice.logprobs.token_logprobs for choice in read.choices] == [
        choice.logprobs.token_logprobs[:-1] for choice in answers.choices
    ]
