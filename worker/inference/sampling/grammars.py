"""Constrained decoding: grammars compiled by llguidance to masks of the tokens that may come next.

A grammar is compiled once per vocabulary. The mask is computed on the host right after each token, so that an
error there fails only its own answer.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase

from app.core.engine.messages import OutputSchema
from app.core.errors import InvalidRequest
from worker.inference.answers.grammar import json_options

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_MAX_GRAMMARS = 256
_MAX_VOCABULARIES = 8
_PARAM = "response_format"

Vocabulary = tuple[str, frozenset[int]]


@dataclass(frozen=True)
class GrammarSchema:
    """A JSON schema that is part of a grammar; `owner` says of what, `param` where it is in the request."""

    source: str
    strict: bool
    owner: str
    param: str


@dataclass(frozen=True)
class LarkGrammar:
    """A grammar in llguidance's Lark syntax, and the schemas in it: one at least."""

    text: str
    schemas: tuple[GrammarSchema, ...]


GrammarSource = OutputSchema | LarkGrammar


class SchemaGrammar:
    """A grammar compiled for one vocabulary."""

    def __init__(self, matcher: LLMatcher, param: str) -> None:
        self._matcher = matcher
        self._param = param
        self._first_allowed = _allowed_next(matcher, param)

    def start(self) -> "SchemaMatcher":
        """Returns a new matcher for one answer."""
        return SchemaMatcher(self._matcher.deep_copy(), self._first_allowed, self._param)


class SchemaMatcher:
    """The state of one answer in the grammar. End tokens are allowed only where the answer is complete."""

    def __init__(self, matcher: LLMatcher, allowed: npt.NDArray[np.int32], param: str) -> None:
        self._matcher = matcher
        self._allowed = allowed
        self._param = param

    def allowed_tokens(self) -> npt.NDArray[np.int32]:
        """The tokens that may come next, as a bit mask: bit t % 32 of word t // 32 is token t."""
        return self._allowed

    def allowed_along(self, token_ids: Sequence[int]) -> list[npt.NDArray[np.int32]]:
        """`allowed_tokens` now and after each of these tokens, up to the first that is not allowed."""
        allowed = [self._allowed]
        ahead = self._matcher.deep_copy()
        for token_id in token_ids:
            if not _is_allowed(token_id, allowed[-1]):
                break
            ahead.consume_token(token_id)
            try:
                allowed.append(_allowed_next(ahead, self._param))
            except InvalidRequest:
                # Where the answer does come to this token, `accept_token` raises it.
                break
        return allowed

    def accept_token(self, token_id: int) -> None:
        """Advance by this token. Raises InvalidRequest where the schema exceeds llguidance's limits."""
        self._matcher.consume_token(token_id)
        self._allowed = _allowed_next(self._matcher, self._param)


class GrammarCache:
    """The most recently used compiled grammars. Thread-safe."""

    def __init__(self) -> None:
        self._grammars: OrderedDict[tuple[Vocabulary, GrammarSource], SchemaGrammar] = OrderedDict()
        self._vocabularies: OrderedDict[Vocabulary, LLTokenizer] = OrderedDict()
        self._lock = threading.Lock()

    def get(
        self,
        source: GrammarSource,
        tokenizer: PreTrainedTokenizerBase,
        *,
        tokenizer_digest: str,
        end_ids: Collection[int],
    ) -> SchemaGrammar:
        """Returns the compiled grammar. Raises InvalidRequest where it can't be compiled."""
        vocabulary = (tokenizer_digest, frozenset(end_ids))
        key = (vocabulary, source)
        with self._lock:
            if key in self._grammars:
                self._grammars.move_to_end(key)
                return self._grammars[key]
            llg_tokenizer = self._vocabulary(vocabulary, tokenizer)
        # Outside the lock, so that other requests do not wait for a large schema.
        grammar = _compile(source, llg_tokenizer)
        with self._lock:
            self._grammars[key] = grammar
            while len(self._grammars) > _MAX_GRAMMARS:
                self._grammars.popitem(last=False)
        return grammar

    def _vocabulary(self, vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase) -> LLTokenizer:
        if vocabulary not in self._vocabularies:
            self._vocabularies[vocabulary] = _read(tokenizer, vocabulary[1])
        self._vocabularies.move_to_end(vocabulary)
        while len(self._vocabularies) > _MAX_VOCABULARIES:
            self._vocabularies.popitem(last=False)
        return self._vocabularies[vocabulary]


def _read(tokenizer: PreTrainedTokenizerBase, end_ids: Collection[int]) -> LLTokenizer:
    if not end_ids:
        raise InvalidRequest("This model has no token that ends an answer.", param=_PARAM)
    try:
        return from_tokenizer(cast(Any, tokenizer), eos_token=sorted(end_ids))
    except ValueError as error:
        raise InvalidRequest(
            f"This model's tokenizer can't be held to a schema: {error}", param=_PARAM
        ) from error


def _compile(source: GrammarSource, vocabulary: LLTokenizer) -> SchemaGrammar:
    if isinstance(source, OutputSchema):
        return _compile_schema(source.source, vocabulary, strict=source.strict)
    try:
        return _start(vocabulary, source.text, source.schemas[0].param)
    except InvalidRequest:
        for schema in source.schemas:
            _check_schema(schema, vocabulary)
        raise


def _check_schema(schema: GrammarSchema, vocabulary: LLTokenizer) -> None:
    """Raise InvalidRequest that names the schema, where it can't be used."""
    try:
        _compile_schema(schema.source, vocabulary, strict=schema.strict)
    except InvalidRequest as error:
        raise InvalidRequest(
            f"{schema.owner}: {error.message}", param=schema.param, hint=error.hint
        ) from error


def _compile_schema(source: str, vocabulary: LLTokenizer, *, strict: bool) -> SchemaGrammar:
    options = cast("JsonCompileOptions", json_options(strict=strict))
    try:
        grammar = LLMatcher.grammar_from_json_schema(source, overrides=options)
    except ValueError as error:
        raise InvalidRequest(f"The schema can't be used: {error}.", param=_PARAM) from error
    return _start(vocabulary, grammar, _PARAM)


def _start(vocabulary: LLTokenizer, grammar: str, param: str) -> SchemaGrammar:
    return SchemaGrammar(LLMatcher(vocabulary, grammar, log_level=0), param)


def _allowed_next(matcher: LLMatcher, param: str) -> npt.NDArray[np.int32]:
    _check(matcher, param)
    # A bytearray, because torch.from_numpy wants writable memory.
    allowed = np.frombuffer(bytearray(matcher.compute_bitmask()), dtype=np.int32)
    _check(matcher, param)
    return allowed


def _is_allowed(token_id: int, allowed_W: npt.NDArray[np.int32]) -> bool:
    word, bit = divmod(token_id, 32)
    return word < len(allowed_W) and bool(int(allowed_W[word]) >> bit & 1)


def _check(matcher: LLMatcher, param: str) -> None:
    if matcher.is_error():
        problem = " ".join(matcher.get_error().split())
        raise InvalidRequest(
            f"The schema can't be used: {problem}.",
            param=param,
            hint="Without `strict`, keywords that are not supported are passed over.",
        )
