"""Whatever the model prefers, constrained answers match the schema."""

import json
import random
from pathlib import Path

import pytest

from app.core.engine.messages import OutputSchema
from app.core.errors import InvalidRequest
from worker.inference.sampling.grammars import GrammarCache, SchemaGrammar
from worker.models.files.description import load_tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
END_IDS = {2, 3}


@pytest.fixture(scope="module")
def tokenizer(models_folder: Path):
    return load_tokenizer(models_folder / "tiny-llama")


def compile_schema(tokenizer, schema: object, *, strict: bool = True) -> SchemaGrammar:
    asked = OutputSchema(source=json.dumps(schema), strict=strict)
    return GrammarCache().get(asked, tokenizer, tokenizer_digest="", end_ids=END_IDS)


def token_ids(words) -> list[int]:
    return [index for index in range(32 * len(words)) if words[index // 32] >> (index % 32) & 1]


def say(grammar: SchemaGrammar, rng: random.Random) -> list[int]:
    """A random answer of allowed tokens, up to an end token."""
    matcher, said = grammar.start(), []
    while (choice := rng.choice(token_ids(matcher.allowed_tokens()))) not in END_IDS:
        said.append(choice)
        matcher.accept_token(choice)
    return said


@pytest.mark.parametrize("seed", range(40))
def test_any_allowed_answer_that_ends_matches_the_schema(tokenizer, seed):
    said = say(compile_schema(tokenizer, PERSON), random.Random(seed))

    person = json.loads(tokenizer.decode(said))

    assert set(person) == {"name", "age", "tags"}
    assert len(person["name"]) <= 8
    assert person["age"] in range(151)
    assert set(person["tags"]) <= {"a", "b"}
    assert len(person["tags"]) <= 2


def test_the_end_is_allowed_exactly_where_the_schema_matches(tokenizer):
    matcher = compile_schema(tokenizer, {"enum": [1, 12]}).start()
    assert not END_IDS & set(token_ids(matcher.allowed_tokens()))

    matcher.accept_token(tokenizer.convert_tokens_to_ids("1"))
    assert set(token_ids(matcher.allowed_tokens())) > END_IDS

    matcher.accept_token(tokenizer.convert_tokens_to_ids("2"))
    assert set(token_ids(matcher.allowed_tokens())) == END_IDS


def test_answers_of_one_grammar_have_separate_states(tokenizer):
    grammar = compile_schema(tokenizer, {"enum": [12]})
    first, second = grammar.start(), grammar.start()

    first.accept_token(tokenizer.convert_tokens_to_ids("1"))

    assert token_ids(second.allowed_tokens()) == token_ids(grammar.start().allowed_tokens())
    assert token_ids(first.allowed_tokens()) != token_ids(second.allowed_tokens())


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "#/nowhere"},
        {"type": "string", "pattern": "("},
        {"type": "array", "uniqueItems": True},
        [1],
    ],
)
def test_a_schema_that_can_not_be_compiled_is_refused(tokenizer, schema):
    with pytest.raises(InvalidRequest) as caught:
        compile_schema(tokenizer, schema)

    assert caught.value.param == "response_format"


def test_unknown_keywords_are_ignored_unless_strict(tokenizer):
    grammar = compile_schema(tokenizer, {"type": "array", "uniqueItems": True}, strict=False)

    assert isinstance(json.loads(tokenizer.decode(say(grammar, random.Random(0)))), list)


def test_blanks_between_tokens_come_to_an_end(tokenizer):
    matcher = compile_schema(tokenizer, PERSON).start()
    matcher.accept_token(tokenizer.convert_tokens_to_ids("{"))
    blank, newline = tokenizer.convert_tokens_to_ids(["Ġ", "Ċ"])

    matcher.accept_token(newline)
    for _ in range(32):
        assert blank in token_ids(matcher.allowed_tokens())
        matcher.accept_token(blank)

    assert not {blank, newline} & set(token_ids(matcher.allowed_tokens()))


def test_a_blank_stands_alone_unless_it_indents_a_line(tokenizer):
    matcher = compile_schema(tokenizer, PERSON).start()
    matcher.accept_token(tokenizer.convert_tokens_to_ids("{"))
    blank, newline = tokenizer.convert_tokens_to_ids(["Ġ", "Ċ"])

    matcher.accept_token(blank)

    assert not {blank, newline} & set(token_ids(matcher.allowed_tokens()))


def test_a_tokenizer_without_an_end_is_refused(tokenizer):
    schema = OutputSchema(source="{}", strict=True)

    with pytest.raises(InvalidRequest):
        GrammarCache().get(schema, tokenizer, tokenizer_digest="", end_ids=())


@pytest.mark.parametrize("seed", range(10))
def test_masks_along_a_draft_are_those_that_its_tokens_lead_to(tokenizer, seed):
    rng = random.Random(seed)
    grammar = compile_schema(tokenizer, PERSON)
    said = say(grammar, rng)
    matcher, start = grammar.start(), rng.randrange(len(said))
    for token in said[:start]:
        matcher.accept_token(token)
    draft = said[start : start + 6]
    before = token_ids(matcher.allowed_tokens())

    masks = [token_ids(mask) for mask in matcher.allowed_along(draft)]

    assert len(masks) == len(draft) + 1
    for token, mask in zip(draft, masks, strict=False):
        assert token_ids(matcher.allowed_tokens()) == mask
        matcher.accept_token(token)
    assert masks[0] == before


def test_masks_along_a_draft_end_where_it_is_not_allowed(tokenizer):
    matcher = compile_schema(tokenizer, {"enum": [1, 12]}).start()
    one, two = tokenizer.convert_tokens_to_ids(["1", "2"])

    assert len(matcher.allowed_along([one, one, two])) == 2
    assert len(matcher.allowed_along([two])) == 1
    assert len(matcher.allowed_along([one, two])) == 3
    assert len(matcher.allowed_along([10**6])) == 1
