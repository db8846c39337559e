"""Tokenizers that are missing, unreadable or nonsense."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.worker.damaged.damages import (
    DEEP,
    Damage,
    as_folder,
    as_loop,
    change,
    drop,
    in_turn,
    remove,
    truncate,
    write,
)


def _template(content: object) -> Damage:
    return in_turn(remove("chat_template.jinja"), change("tokenizer_config.json", chat_template=content))


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


TOKENIZERS: dict[str, Damage] = {
    "tokenizer missing": remove("tokenizer*", "special*"),
    "tokenizer.json missing": remove("tokenizer.json"),
    "tokenizer.json truncated": truncate("tokenizer.json", 0.5),
    "tokenizer.json empty": write("tokenizer.json", ""),
    "tokenizer.json a list": write("tokenizer.json", "[]"),
    "tokenizer.json null": write("tokenizer.json", "null"),
    "tokenizer.json binary": write("tokenizer.json", b"\xff\x00\x81"),
    "tokenizer.json a folder": as_folder("tokenizer.json"),
    "tokenizer.json unreadable": as_loop("tokenizer.json"),
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
    "tokenizer_config missing": remove("tokenizer_config.json"),
    "tokenizer_config empty": write("tokenizer_config.json", ""),
    "tokenizer_config a list": write("tokenizer_config.json", "[]"),
    "tokenizer_config null": write("tokenizer_config.json", "null"),
    "tokenizer_config deep": write("tokenizer_config.json", '{"x": ' + DEEP + "}"),
    "class unknown": change("tokenizer_config.json", tokenizer_class="NoSuchTokenizer"),
    "class number": change("tokenizer_config.json", tokenizer_class=5),
    "class of another family": change("tokenizer_config.json", tokenizer_class="BertTokenizer"),
    "class remote": change("tokenizer_config.json", auto_map={"AutoTokenizer": ["code.T", None]}),
    "template number": _template(5),
    "template object": _template({"a": "b"}),
    "template list": _template([1, 2]),
    "template named": _template([{"name": "tool_use", "template": "x"}]),
    "template without name": _template([{"template": "x"}]),
    "template empty list": _template([]),
    "template file a folder": as_folder("chat_template.jinja"),
    "template file binary": write("chat_template.jinja", b"\xff\xfe\x81"),
    "end token number": change("tokenizer_config.json", eos_token=5),
    "end token list": change("tokenizer_config.json", eos_token=["a"]),
    "end token object": change("tokenizer_config.json", eos_token={"content": 5}),
    "end token null": change("tokenizer_config.json", eos_token=None),
    "no special tokens": drop("tokenizer_config.json", "bos_token", "eos_token", "pad_token"),
    "pad token number": change("tokenizer_config.json", pad_token=5),
    "pad token new": change("tokenizer_config.json", pad_token="<|new|>"),
    "extra tokens number": change("tokenizer_config.json", extra_special_tokens=5),
    "added decoder rubbish": change("tokenizer_config.json", added_tokens_decoder={"x": "y"}),
    "model_max_length text": change("tokenizer_config.json", model_max_length="long"),
    "padding_side rubbish": change("tokenizer_config.json", padding_side="top"),
    "special map rubbish": write("special_tokens_map.json", "[1"),
    "added tokens rubbish": write("added_tokens.json", "[1"),
    "sentencepiece broken": in_turn(
        remove("tokenizer.json"),
        change("tokenizer_config.json", tokenizer_class="LlamaTokenizer"),
        write("tokenizer.model", b"\x0a\x05rubbish"),
    ),
    "vocabulary files broken": in_turn(
        remove("tokenizer.json"),
        change("tokenizer_config.json", tokenizer_class="GPT2Tokenizer"),
        write("vocab.json", "[]"),
        write("merges.txt", "a"),
    ),
}
