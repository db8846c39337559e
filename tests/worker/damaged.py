"""Damaged base models, hostile chat templates and odd rows, each made from the tiny model or written out.

A damage is a function that changes a model's folder. None of them may end in an internal error.
"""

import json
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from app.core.datasets.rows import Completion, Conversation, Message, PlainText, Row

Damage = Callable[[Path], None]
WEIGHTS = "model.safetensors"


def _write(name: str, content: str | bytes) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def _remove(*patterns: str) -> Damage:
    def damage(folder: Path) -> None:
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink()

    return damage


def _change(name: str, **fields: Any) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        content.update(fields)
        (folder / name).write_text(json.dumps(content))

    return damage


def _drop(name: str, *fields: str) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        for field in fields:
            content.pop(field, None)
        (folder / name).write_text(json.dumps(content))

    return damage


def _truncate(name: str, share: float) -> Damage:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return damage


def _all(*damages: Damage) -> Damage:
    def damage(folder: Path) -> None:
        for one in damages:
            one(folder)

    return damage


def _tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def _reshape_one(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 5)


def _make_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")


def _make_integers(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(128, 64, dtype=torch.int8)


def _drop_one(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.layers.0.mlp.up_proj.weight"]


def _rename(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[f"other.{name}"] = tensors.pop(name)


def _index(content: object) -> Damage:
    def damage(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return damage


def _missing_shard(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    names = dict.fromkeys(tensors, "model-00001-of-00002.safetensors")
    names[next(iter(tensors))] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def _pickles(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def _folder_as_file(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return damage


def _loop(name: str) -> Damage:
    """A symbolic link to itself, which no user can read, root included."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(name)

    return damage


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _as_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")


def _template(content: object) -> Damage:
    return _all(_remove("chat_template.jinja"), _change("tokenizer_config.json", chat_template=content))


def _tokenizer_json(change: Callable[[Any], Any]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return damage


def _add_token(number: int) -> Callable[[Any], Any]:
    def change(content: Any) -> Any:
        content["added_tokens"].append({**content["added_tokens"][0], "id": number, "content": "<|far|>"})
        return content

    return change


_config = partial(_change, "config.json")
_deep = "[" * 100_000 + "]" * 100_000

CONFIGS: dict[str, Damage] = {
    "config missing": _remove("config.json"),
    "config empty": _write("config.json", ""),
    "config not JSON": _write("config.json", "{model_type: llama"),
    "config binary": _write("config.json", b"\xff\xfe\x00\x81"),
    "config deep": _write("config.json", '{"model_type": "llama", "x": ' + _deep + "}"),
    "config a list": _write("config.json", "[1, 2]"),
    "config null": _write("config.json", "null"),
    "config a string": _write("config.json", '"llama"'),
    "config empty object": _write("config.json", "{}"),
    "config a folder": _folder_as_file("config.json"),
    "config unreadable": _loop("config.json"),
    "unknown model_type": _config(model_type="nosuchmodel", architectures=["NoSuchModel"]),
    "model_type null": _config(model_type=None),
    "model_type number": _config(model_type=5),
    "model_type list": _config(model_type=["llama"]),
    "needs remote code": _config(
        model_type="custom", auto_map={"AutoConfig": "configuration.C", "AutoModelForCausalLM": "modeling.M"}
    ),
    "auto_map rubbish": _config(auto_map=7),
    "architectures number": _config(architectures=5),
    "architectures null": _config(architectures=None),
    "text_config list": _config(text_config=[1]),
    "text_config string": _config(text_config="x"),
    "hidden_size text": _config(hidden_size="64"),
    "hidden_size null": _config(hidden_size=None),
    "hidden_size negative": _config(hidden_size=-64),
    "hidden_size list": _config(hidden_size=[64]),
    "hidden_size zero": _config(hidden_size=0),
    "hidden_size other": _config(hidden_size=60, head_dim=None),
    "hidden_size huge": _config(hidden_size=2**62),
    "heads zero": _config(num_attention_heads=0, head_dim=None),
    "heads not dividing": _config(num_attention_heads=7, head_dim=None),
    "heads text": _config(num_attention_heads="four"),
    "heads null": _config(num_attention_heads=None),
    "key heads zero": _config(num_key_value_heads=0),
    "key heads not dividing": _config(num_key_value_heads=3),
    "layers zero": _config(num_hidden_layers=0),
    "layers null": _config(num_hidden_layers=None),
    "layers negative": _config(num_hidden_layers=-1),
    "layers text": _config(num_hidden_layers="2"),
    "layers more": _config(num_hidden_layers=4),
    "layer_types rubbish": _config(layer_types=["nothing", "nothing"]),
    "mlp list": _config(intermediate_size=[128, 128]),
    "mlp null": _config(intermediate_size=None),
    "vocabulary smaller": _config(vocab_size=100),
    "vocabulary zero": _config(vocab_size=0),
    "vocabulary null": _config(vocab_size=None),
    "context null": _config(max_position_embeddings=None),
    "context text": _config(max_position_embeddings="long"),
    "context list": _config(max_position_embeddings=[256]),
    "context zero": _config(max_position_embeddings=0),
    "context negative": _config(max_position_embeddings=-1),
    "context float": _config(max_position_embeddings=256.5),
    "dtype unknown": _config(dtype="floaty"),
    "dtype number": _config(dtype=5),
    "dtype not a float": _config(dtype="int8"),
    "activation unknown": _config(hidden_act="nothing"),
    "activation null": _config(hidden_act=None),
    "eps text": _config(rms_norm_eps="small"),
    "eps null": _config(rms_norm_eps=None),
    "rope text": _config(rope_scaling="linear", rope_parameters="linear"),
    "rope unknown": _config(rope_scaling={"type": "nothing"}, rope_parameters={"rope_type": "nothing"}),
    "rope list": _config(rope_parameters=[1, 2]),
    "rope theta text": _config(rope_parameters={"rope_type": "default", "rope_theta": "big"}),
    "rope without factor": _config(rope_parameters={"rope_type": "linear"}),
    "quantization text": _config(quantization_config="4bit"),
    "quantization empty": _config(quantization_config={}),
    "quantization unknown": _config(quantization_config={"quant_method": "nothing"}),
    "quantization list": _config(quantization_config=[4]),
    "quantization awq": _config(quantization_config={"quant_method": "awq", "bits": 4}),
    "quantization gptq": _config(quantization_config={"quant_method": "gptq", "bits": 4}),
    "quantization fp8": _config(quantization_config={"quant_method": "fp8"}),
    "quantization mxfp4": _config(quantization_config={"quant_method": "mxfp4"}),
    "pad token beyond": _config(pad_token_id=100_000),
    "pad token text": _config(pad_token_id="pad"),
    "end token rubbish": _config(eos_token_id={"a": 1}),
    "tie rubbish": _config(tie_word_embeddings="maybe"),
    "id2label rubbish": _config(id2label=5),
    "T5": _config(model_type="t5", architectures=["T5ForConditionalGeneration"]),
    "BERT": _config(model_type="bert", architectures=["BertModel"]),
    "CLIP": _config(model_type="clip", architectures=["CLIPModel"]),
    "Whisper": _config(model_type="whisper", architectures=["WhisperForConditionalGeneration"]),
    "ViT": _config(model_type="vit", architectures=["ViTModel"]),
    "gemma3n lists": _config(
        model_type="gemma3n_text", architectures=["Gemma3nForCausalLM"], intermediate_size=[128, 128]
    ),
}

TOKENIZERS: dict[str, Damage] = {
    "tokenizer missing": _remove("tokenizer*", "special*"),
    "tokenizer.json missing": _remove("tokenizer.json"),
    "tokenizer.json truncated": _truncate("tokenizer.json", 0.5),
    "tokenizer.json empty": _write("tokenizer.json", ""),
    "tokenizer.json a list": _write("tokenizer.json", "[]"),
    "tokenizer.json null": _write("tokenizer.json", "null"),
    "tokenizer.json binary": _write("tokenizer.json", b"\xff\x00\x81"),
    "tokenizer.json a folder": _folder_as_file("tokenizer.json"),
    "tokenizer.json unreadable": _loop("tokenizer.json"),
    "tokenizer.json unknown model": _tokenizer_json(lambda one: {**one, "model": {"type": "Nothing"}}),
    "tokenizer.json model null": _tokenizer_json(lambda one: {**one, "model": None}),
    "tokenizer.json no model": _tokenizer_json(
        lambda one: {key: value for key, value in one.items() if key != "model"}
    ),
    "tokenizer.json added text": _tokenizer_json(lambda one: {**one, "added_tokens": "none"}),
    "tokenizer.json vocabulary a list": _tokenizer_json(
        lambda one: {**one, "model": {**one["model"], "vocab": ["a", "b"]}}
    ),
    "tokenizer.json merges rubbish": _tokenizer_json(
        lambda one: {**one, "model": {**one["model"], "merges": [["no", "such"]]}}
    ),
    "tokenizer.json post processor": _tokenizer_json(
        lambda one: {
            **one,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<none>", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            },
        }
    ),
    "tokenizer.json panics when it is loaded": _tokenizer_json(
        lambda one: {**one, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}
    ),
    "tokenizer.json panics when it encodes": _tokenizer_json(
        lambda one: {**one, "pre_tokenizer": {"type": "FixedLength", "length": 0}}
    ),
    "added token beyond": _tokenizer_json(_add_token(100_000)),
    "added token negative": _tokenizer_json(_add_token(-1)),
    "tokenizer_config missing": _remove("tokenizer_config.json"),
    "tokenizer_config empty": _write("tokenizer_config.json", ""),
    "tokenizer_config a list": _write("tokenizer_config.json", "[]"),
    "tokenizer_config null": _write("tokenizer_config.json", "null"),
    "tokenizer_config deep": _write("tokenizer_config.json", '{"x": ' + _deep + "}"),
    "class unknown": _change("tokenizer_config.json", tokenizer_class="NoSuchTokenizer"),
    "class number": _change("tokenizer_config.json", tokenizer_class=5),
    "class of another family": _change("tokenizer_config.json", tokenizer_class="BertTokenizer"),
    "class remote": _change("tokenizer_config.json", auto_map={"AutoTokenizer": ["code.T", None]}),
    "template number": _template(5),
    "template object": _template({"a": "b"}),
    "template list": _template([1, 2]),
    "template named": _template([{"name": "tool_use", "template": "x"}]),
    "template without name": _template([{"template": "x"}]),
    "template empty list": _template([]),
    "template file a folder": _folder_as_file("chat_template.jinja"),
    "template file binary": _write("chat_template.jinja", b"\xff\xfe\x81"),
    "end token number": _change("tokenizer_config.json", eos_token=5),
    "end token list": _change("tokenizer_config.json", eos_token=["a"]),
    "end token object": _change("tokenizer_config.json", eos_token={"content": 5}),
    "end token null": _change("tokenizer_config.json", eos_token=None),
    "no special tokens": _drop("tokenizer_config.json", "bos_token", "eos_token", "pad_token"),
    "pad token number": _change("tokenizer_config.json", pad_token=5),
    "pad token new": _change("tokenizer_config.json", pad_token="<|new|>"),
    "extra tokens number": _change("tokenizer_config.json", extra_special_tokens=5),
    "added decoder rubbish": _change("tokenizer_config.json", added_tokens_decoder={"x": "y"}),
    "model_max_length text": _change("tokenizer_config.json", model_max_length="long"),
    "padding_side rubbish": _change("tokenizer_config.json", padding_side="top"),
    "special map rubbish": _write("special_tokens_map.json", "[1"),
    "added tokens rubbish": _write("added_tokens.json", "[1"),
    "sentencepiece broken": _all(
        _remove("tokenizer.json"),
        _change("tokenizer_config.json", tokenizer_class="LlamaTokenizer"),
        _write("tokenizer.model", b"\x0a\x05rubbish"),
    ),
    "vocabulary files broken": _all(
        _remove("tokenizer.json"),
        _change("tokenizer_config.json", tokenizer_class="GPT2Tokenizer"),
        _write("vocab.json", "[]"),
        _write("merges.txt", "a"),
    ),
}

WEIGHT_FILES: dict[str, Damage] = {
    "weights missing": _remove(WEIGHTS),
    "weights empty": _write(WEIGHTS, b""),
    "weights truncated": _truncate(WEIGHTS, 0.7),
    "weights header truncated": _truncate(WEIGHTS, 0.001),
    "weights rubbish": _write(WEIGHTS, b"rubbish" * 100),
    "weights text": _write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
    "weights header a list": _write(WEIGHTS, struct.pack("<Q", 2) + b"[]"),
    "weights header huge": _write(WEIGHTS, struct.pack("<Q", 2**63) + b"{}"),
    "weights header strange": _write(WEIGHTS, struct.pack("<Q", 8) + b'{"a": 1}'),
    "weights without tensors": _write(WEIGHTS, struct.pack("<Q", 2) + b"{}"),
    "weights a folder": _folder_as_file(WEIGHTS),
    "weights unreadable": _loop(WEIGHTS),
    "weights without format": lambda folder: save_file(load_file(folder / WEIGHTS), folder / WEIGHTS),
    "wrong shapes": _tensors(_reshape_one),
    "not a number": _tensors(_make_nan),
    "integers": _tensors(_make_integers),
    "one tensor missing": _tensors(_drop_one),
    "names unknown": _tensors(_rename),
    "shard missing": _missing_shard,
    "index a list": _index([]),
    "index without map": _index({"metadata": {}}),
    "index empty map": _index({"metadata": {}, "weight_map": {}}),
    "index map a list": _index({"weight_map": ["a"]}),
    "index names numbers": _index({"weight_map": {"a": 5}}),
    "index names outside": _index({"metadata": {}, "weight_map": {"a": "../../secret.safetensors"}}),
    "index not JSON": _all(_index({}), _write("model.safetensors.index.json", "{")),
    "pickles only": _pickles,
    "GGUF": _all(_remove(WEIGHTS), _write("model.gguf", b"GGUFrubbish")),
    "generation config rubbish": _write("generation_config.json", "[1"),
    "generation config list": _write("generation_config.json", "[]"),
    "generation config types": _write(
        "generation_config.json", '{"eos_token_id": "x", "temperature": "hot", "max_length": []}'
    ),
    "generation config end list": _write("generation_config.json", '{"eos_token_id": ["a", null]}'),
    "generation config end object": _write("generation_config.json", '{"eos_token_id": {"a": 1}}'),
    "generation config a folder": _folder_as_file("generation_config.json"),
    "empty folder": _empty,
    "a file": _as_file,
}

_LOOP = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
TEMPLATES: dict[str, str] = {
    "raises": "{{ raise_exception('No system turn.') }}",
    "undefined filter": _LOOP + "{{ messages | nosuchfilter }}",
    "undefined test": _LOOP + "{% if messages is nosuchtest %}{% endif %}",
    "undefined function": _LOOP + "{{ nosuch() }}",
    "undefined attribute": _LOOP + "{{ nosuch.thing.other }}",
    "division by zero": _LOOP + "{{ 1 / 0 }}",
    "large power": _LOOP + "{{ 10.0 ** 400 }}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}" + _LOOP + "{{ f(1) }}",
    "includes": _LOOP + "{% include 'x' %}",
    "extends": "{% extends 'x' %}",
    "huge output": _LOOP + "{{ 'x' * 100000000000000 }}",
    "huge range": _LOOP + "{% for i in range(1000000000000) %}{% endfor %}",
    "prints an object": "{{ messages }}",
    "prints functions": _LOOP + "{{ raise_exception }}",
    "without messages": "hello",
    "empty": "",
    "syntax error": "{% for m in messages %}",
    "syntax error 2": "{{ messages[ }}",
    "unsafe": _LOOP + "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "unsafe change": _LOOP + "{{ messages.append(1) }}",
    "key error": "{{ messages[0].nosuch }}{{ messages[99].content }}",
    "key error in filter": _LOOP + "{{ messages | map(attribute='a.b.c') | join }}",
    "type error": _LOOP + "{{ 'a' + 1 }}",
    "value error": _LOOP + "{{ 'a' | int(base=99) }}",
    "format error": _LOOP + "{{ '%d' | format('a') }}",
    "sort error": _LOOP + "{{ [1, 'a'] | sort }}",
    "date": "{{ strftime_now('%') }}{{ strftime_now(5) }}" + _LOOP,
    "json error": _LOOP + "{{ raise_exception | tojson }}",
    "surrogates": _LOOP + "{{ '\\ud800' }}",
    "NUL": _LOOP + "{{ '\\0' }}",
    "stop iteration": _LOOP + "{{ messages | first | list | batch(0) | list }}",
    "generation nested": "{% generation %}{% generation %}"
    + _LOOP
    + "{% endgeneration %}{% endgeneration %}",
    "deep nesting": "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}" + _LOOP,
    "deep ifs": "{% if 1 %}" * 150 + _LOOP + "{% endif %}" * 150,
}


def _chat(question: str, answer: str) -> Row:
    return Conversation((Message("user", question), Message("assistant", answer)))


ROWS: dict[str, Row] = {
    "emoji": _chat("👩‍👩‍👧‍👦 ﷽ ￿", "‮abc\u0301\u0301\u0301"),
    "NUL": _chat("a\0b", "\0"),
    "controls": PlainText("".join(map(chr, range(32))) + "\x7f\x85\u2028\ufeff"),
    "one token": PlainText("a"),
    "nothing": PlainText(""),
    "nothing said": _chat("", ""),
    "nothing completed": Completion("", ""),
    "spaces": PlainText(" \n\t "),
    "200,000 characters": PlainText("How do I cancel a job? " * 8700),
    "one word of 200,000 characters": PlainText("a" * 200_000),
    "special tokens": PlainText("<|begin|><|im_end|><|pad|>"),
    "special tokens in chat": _chat("<|im_end|>", "<|im_start|>assistant\n<|im_end|>"),
    "unknown role": Conversation((Message("wizard", "a"), Message("assistant", "b"))),
    "no turns": Conversation(()),
    "ends with the user": Conversation((Message("user", "a"),)),
    "weights of none": Conversation((Message("user", "a"), Message("assistant", "b", weight=0))),
}


def make_damaged(models_folder: Path, source: Path, name: str, damage: Damage) -> Path:
    """A copy of the model in `source` under another name, damaged."""
    folder = shutil.copytree(source, models_folder / name)
    damage(folder)
    return folder
