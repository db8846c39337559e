"""From a request to token ids, with the adapter's own template where it has one."""

import json
import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers import TokenizersBackend

from app.core.chat.tools import FunctionTool
from app.core.engine.messages import (
    AdapterRef,
    BaseModelRef,
    ChatMessage,
    GenerateRequest,
    OutputSchema,
    ServingPath,
    Tools,
)
from app.core.engine.sampling import Sampling
from app.core.errors import InvalidRequest, NotFound
from app.core.errors.base_models import BaseModelChanged, ModelUnreadable
from app.core.specs.job import QuantizationSpec
from app.core.storage.artifacts import ArtifactStore
from worker.inference import preprocessing
from worker.inference.adapters.cache import AdapterCache
from worker.inference.base_folders import BaseFolders
from worker.inference.failures import AdapterUnsupported, failed
from worker.inference.general.paths import ServingPaths
from worker.inference.preprocessing import Preprocessor
from worker.inference.tokenizers import TokenizerCache
from worker.models.device import find_device
from worker.models.files.description import load_tokenizer
from worker.templates import renderer

BASE = BaseModelRef(name="tiny-llama", quantization=QuantizationSpec(load_in_4bit=False))
QUESTION = [ChatMessage(role="user", content="job?")]


@pytest.fixture
def artifacts(adapters_folder: Path, models_folder: Path, tmp_path: Path) -> Path:
    """One adapter with a tokenizer and a template of its own, one without."""
    own = shutil.copytree(adapters_folder / "attention", tmp_path / "own")
    load_tokenizer(models_folder / "tiny-llama").save_pretrained(own)
    (own / "chat_template.jinja").write_text("Q: {{ messages[0]['content'] }} A:")
    shutil.copytree(adapters_folder / "attention", tmp_path / "plain")
    return tmp_path


@pytest.fixture
def preprocessor(models_folder: Path, artifacts: Path) -> Preprocessor:
    return Preprocessor(
        BaseFolders(models_folder),
        AdapterCache(ArtifactStore(str(artifacts)), artifacts / "cache", 1 << 30),
        find_device(),
        ServingPaths(),
    )


def make_request(
    *, adapter: str | None = None, base: BaseModelRef = BASE, **options: object
) -> GenerateRequest:
    reference = AdapterRef(id=adapter, artifact=adapter) if adapter else None
    return GenerateRequest(base_model=base, adapter=reference, **options)


def text_of(prompt, models_folder: Path) -> str:
    return load_tokenizer(models_folder / "tiny-llama").decode(prompt.token_ids)


def test_prompt_is_taken_as_it_is(preprocessor, models_folder):
    assert text_of(preprocessor.prepare(make_request(prompt="job?")), models_folder) == "job?"


def test_the_general_path_is_taken_where_the_base_model_the_adapter_or_the_request_needs_it(
    preprocessor, models_folder, artifacts
):
    shutil.copytree(artifacts / "plain", artifacts / "biased")
    config = json.loads((artifacts / "biased" / "adapter_config.json").read_text())
    (artifacts / "biased" / "adapter_config.json").write_text(json.dumps({**config, "bias": "all"}))
    general = BASE.model_copy(update={"path": ServingPath.GENERAL})

    def choice(**options):
        prompt = preprocessor.prepare(make_request(prompt="job?", **options))
        return prompt.base_model.path, prompt.model_obstacle, prompt.adapter_obstacle

    assert choice(adapter="plain") == (ServingPath.PAGED, None, None)
    assert choice(adapter="biased") == (ServingPath.GENERAL, None, "lora.bias")
    assert choice(base=general) == (ServingPath.GENERAL, None, None)
    preprocessor._paths.learn(BASE, "attention of its own")
    assert choice(adapter="plain") == (ServingPath.GENERAL, "attention of its own", None)


def test_messages_are_rendered_with_the_base_models_template(preprocessor, models_folder):
    prompt = preprocessor.prepare(make_request(messages=QUESTION, adapter="plain"))

    assert text_of(prompt, models_folder).startswith("<|begin|><|im_start|>user\njob?<|im_end|>")


def test_messages_are_rendered_with_the_adapters_own_template(preprocessor, models_folder):
    prompt = preprocessor.prepare(make_request(messages=QUESTION, adapter="own"))

    assert text_of(prompt, models_folder) == "Q: job? A:"


def test_end_tokens_are_those_of_tokenizer_and_generation_settings(preprocessor, models_folder):
    path = models_folder / "tiny-llama" / "generation_config.json"
    before = path.read_text()
    path.write_text(json.dumps({"eos_token_id": [7, 8]}))
    try:
        assert preprocessor.prepare(make_request(prompt="x")).end_ids == {2, 7, 8}
    finally:
        path.write_text(before)


def test_text_of_special_tokens_is_left_out(preprocessor):
    assert preprocessor.prepare(make_request(prompt="x")).decode([2, 0, 1]) == ""


@pytest.mark.parametrize("options", [{}, {"prompt": "a", "messages": QUESTION}, {"prompt": ""}])
def test_a_request_needs_one_thing_to_go_on_from(preprocessor, options):
    with pytest.raises(InvalidRequest):
        preprocessor.prepare(make_request(**options))


def test_unknown_adapter_is_not_found(preprocessor):
    with pytest.raises(NotFound):
        preprocessor.prepare(make_request(prompt="a", adapter="nowhere"))


def test_an_adapter_is_not_applied_to_other_weights_than_those_it_was_trained_on(preprocessor, artifacts):
    (artifacts / "plain" / "tunesmith.json").write_text('{"base_weights": "sampled-1:other"}')

    with pytest.raises(BaseModelChanged, match="'tiny-llama' has other weights now") as caught:
        preprocessor.prepare(make_request(prompt="a", adapter="plain"))
    assert failed(caught.value).kind == "invalid"


def test_seed_is_that_of_the_request_or_random(preprocessor):
    kept = preprocessor.prepare(make_request(prompt="a", sampling=Sampling(seed=5)))
    made = [preprocessor.prepare(make_request(prompt="a")).seed for _ in range(2)]

    assert kept.seed == 5
    assert made[0] != made[1]


def test_folders_with_the_same_files_share_a_tokenizer(preprocessor, models_folder, artifacts):
    first = preprocessor._tokenizers.get(models_folder / "tiny-llama")
    copy = shutil.copytree(models_folder / "tiny-llama", artifacts / "copy")

    assert preprocessor._tokenizers.get(copy) is first


@pytest.mark.parametrize("adapter", [None, "plain", "own"])
def test_only_the_first_request_reads_files_and_builds_the_vocabulary(preprocessor, adapter, monkeypatch):
    """Both take milliseconds for a real tokenizer, and every request would pay them."""
    request = make_request(messages=QUESTION, adapter=adapter)
    first = preprocessor.prepare(request)

    def refuse(*_args, **_options):
        raise AssertionError("a second time")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(TokenizersBackend, "get_vocab", refuse)
    monkeypatch.setattr(renderer, "end_token_ids", refuse)
    second = preprocessor.prepare(request)

    assert (second.token_ids, second.end_ids) == (first.token_ids, first.end_ids)


def test_a_tokenizer_whose_files_change_is_read_again(models_folder, tmp_path):
    folder = shutil.copytree(models_folder / "tiny-llama", tmp_path / "tiny-llama")
    cache = TokenizerCache()
    before = cache.get(folder)
    assert cache.get(folder) is before

    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": "<|begin|>"}))

    after = cache.get(folder)
    assert (before.tokenizer.pad_token, after.tokenizer.pad_token) == ("<|pad|>", "<|begin|>")


def test_the_ends_of_answers_are_looked_for_once_by_requests_that_come_at_once(
    preprocessor, models_folder, monkeypatch
):
    looks, both = [], threading.Barrier(2)
    served = preprocessor._tokenizers.get(models_folder / "tiny-llama")
    find = renderer.end_token_ids
    monkeypatch.setattr(renderer, "end_token_ids", lambda *args: looks.append(args) or find(*args))

    def ask(_number):
        both.wait()
        return served.end_ids()

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(ask, range(2)))

    assert len(looks) == 1
    assert found == [{2}, {2}]


def test_token_ids_are_taken_as_they_are(preprocessor):
    assert preprocessor.prepare(make_request(prompt_ids=[5, 6, 7])).token_ids == [5, 6, 7]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"prompt_ids": [5, 100_000]}, "prompt"),
        ({"prompt_ids": []}, "prompt"),
        ({"prompt": "a", "sampling": Sampling(logit_bias={100_000: 1})}, "logit_bias"),
    ],
)
def test_tokens_that_do_not_exist_are_refused(preprocessor, options, param):
    with pytest.raises(InvalidRequest) as caught:
        preprocessor.prepare(make_request(**options))

    assert caught.value.param == param


def test_a_schema_compiles_once_for_all_folders_with_the_same_tokenizer(preprocessor):
    schema = OutputSchema(source='{"type": "object"}', strict=True)
    requests = [make_request(prompt="a", output_schema=schema, adapter=name) for name in (None, "plain")]

    base, adapter = (preprocessor.prepare(request).grammar for request in requests)

    assert base is adapter


def test_functions_that_must_not_be_called_are_not_in_the_prompt(preprocessor):
    tools = Tools(functions=[FunctionTool(name="move")], choice="none")

    without, barred, offered = (
        preprocessor.prepare(make_request(messages=QUESTION, tools=one))
        for one in (None, tools, tools.model_copy(update={"choice": "auto"}))
    )

    assert barred.token_ids == without.token_ids
    assert (without.parsed, barred.parsed) == (None, None)
    assert offered.parsed.functions.keys() == {"move"}
    assert offered.grammar is None


def test_variables_reach_the_template_and_can_not_change_its_tokens(preprocessor, artifacts, models_folder):
    (artifacts / "own" / "chat_template.jinja").write_text("{{ bos_token }}Q {{ effort }} A:")
    request = make_request(
        messages=QUESTION, adapter="own", template_variables={"effort": "high", "bos_token": "x"}
    )

    assert text_of(preprocessor.prepare(request), models_folder) == "<|begin|>Q high A:"


def test_a_prompt_that_opens_the_thoughts_is_found(preprocessor, artifacts):
    (artifacts / "own" / "chat_template.jinja").write_text("Q:{{ messages[0]['content'] }} A:<think>\n")

    parsed = preprocessor.prepare(make_request(messages=QUESTION, adapter="own")).parsed

    assert parsed.is_thinking


@pytest.mark.parametrize("seed", range(20))
def test_decoding_by_the_backend_gives_what_the_tokenizer_gives(models_folder, seed):
    """Includes special tokens, and bytes that are no character."""
    tokenizer = load_tokenizer(models_folder / "tiny-llama")
    rng = random.Random(seed)
    token_ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randrange(30))]
    expected = tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    assert preprocessing.decode(tokenizer, token_ids) == expected


def test_a_tokenizer_with_its_own_decode_is_used(models_folder):
    tokenizer = load_tokenizer(models_folder / "tiny-llama")

    class Loud(type(tokenizer)):
        def _decode(self, *args, **options):
            return super()._decode(*args, **options).upper()

    tokenizer.__class__ = Loud

    assert preprocessing.decode(tokenizer, tokenizer("job")["input_ids"]) == "JOB"


def test_tokens_without_a_row_in_the_embedding_are_refused(models_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "tiny-llama"
    shutil.copytree(models_folder / "tiny-llama", folder)
    tokenizer = load_tokenizer(folder)
    rows = len(tokenizer)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(folder)
    adapters = AdapterCache(ArtifactStore(str(tmp_path)), tmp_path / "cache", 1 << 20)
    preprocessor = Preprocessor(BaseFolders(folder.parent), adapters, find_device(), ServingPaths())

    assert preprocessor.prepare(make_request(prompt="Hello")).token_ids
    for options in (
        {"prompt": "Hello <tool>"},
        {"prompt_ids": [rows]},
        {"prompt": "Hello", "sampling": Sampling(logit_bias={rows: 1})},
    ):
        with pytest.raises(InvalidRequest, match=f"{rows}"):
            preprocessor.prepare(make_request(**options))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(ModelUnreadable, match="100 rows"):
        preprocessor.prepare(make_request(prompt="Hello"))


@pytest.mark.parametrize("token", ["<tool>", "an end token"])
def test_an_adapters_tokenizer_with_tokens_that_the_model_lacks_is_refused(
    preprocessor: Preprocessor, artifacts: Path, token: str
) -> None:
    tokenizer = load_tokenizer(artifacts / "own")
    tokenizer.add_tokens([token])
    if token == "an end token":
        tokenizer.eos_token = token
    tokenizer.save_pretrained(artifacts / "own")

    with pytest.raises(AdapterUnsupported, match=f"The adapter's tokenizer .*{token}"):
        preprocessor.prepare(make_request(messages=QUESTION, adapter="own"))
    assert preprocessor.prepare(make_request(messages=QUESTION, adapter="plain")).token_ids


def test_an_adapters_tokenizer_may_have_what_the_base_models_own_has(
    models_folder: Path, artifacts: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "models" / "tiny-llama"
    shutil.copytree(models_folder / "tiny-llama", folder)
    for where in (folder, artifacts / "own"):
        tokenizer = load_tokenizer(where)
        tokenizer.add_tokens(["<image>"])
        tokenizer.save_pretrained(where)
    adapters = AdapterCache(ArtifactStore(str(artifacts)), artifacts / "cache", 1 << 30)
    preprocessor = Preprocessor(BaseFolders(folder.parent), adapters, find_device(), ServingPaths())

    assert preprocessor.prepare(make_request(prompt="Hello", adapter="own")).token_ids


def test_a_reference_is_what_training_learns_of_an_answer(preprocessor, models_folder):
    messages = [ChatMessage(role="user", content="Where?"), ChatMessage(role="assistant", content="Here.")]
    question = [*messages, ChatMessage(role="user", content="Which city?")]

    prompt = preprocessor.prepare(make_request(messages=question, reference="Oslo", reads_only=True))

    tokenizer = load_tokenizer(models_folder / "tiny-llama")
    counted = [id_ for id_, is_in in zip(prompt.token_ids, prompt.in_reference, strict=True) if is_in]
    assert tokenizer.decode(counted[:-1]).strip() == "Oslo"
    assert counted[-1] == tokenizer.eos_token_id
    assert not prompt.makes_tokens


def test_a_reference_without_a_template_follows_the_prompt(preprocessor):
    prompt = preprocessor.prepare(make_request(prompt="The city is", reference=" Oslo", reads_only=True))
    plain = preprocessor.prepare(make_request(prompt="The city is"))

    border = prompt.in_reference.index(True)
    assert prompt.token_ids[:border] == plain.token_ids
    assert all(prompt.in_reference[border:])


def test_a_model_is_ready_once_a_request_has_read_it_and_while_its_adapter_is_in_memory(
    preprocessor, artifacts
):
    small = AdapterCache(ArtifactStore(str(artifacts)), artifacts / "cache", max_bytes=1)
    preprocessor._adapters = small
    plain, own = (make_request(messages=QUESTION, adapter=name) for name in ("plain", "own"))

    assert not preprocessor.is_ready(plain)
    preprocessor.prepare(plain)
    assert preprocessor.is_ready(plain)
    assert not preprocessor.is_ready(own)
    preprocessor.prepare(own)  # there is memory for one
    assert preprocessor.is_ready(own)
    assert not preprocessor.is_ready(plain)


def test_a_prediction_has_no_beginning_of_its_own(preprocessor, models_folder):
    prompt = preprocessor.prepare(make_request(messages=QUESTION, prediction="the jobs"))

    tokenizer = load_tokenizer(models_folder / "tiny-llama")
    assert tokenizer.decode(prompt.predicted_ids) == "the jobs"
    assert tokenizer.bos_token_id not in prompt.predicted_ids
    assert not preprocessor.prepare(make_request(messages=QUESTION)).predicted_ids
