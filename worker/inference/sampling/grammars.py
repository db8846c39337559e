"""Constrained decoding: JSON schemas compiled by llguidance to masks of the tokens that may come next.

A schema is compiled once per vocabulary. The mask is computed on the host right after each token, so that an
error there fails only its own answer.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase

from app.core.engine.messages import OutputSchema
from app.core.errors import InvalidRequest

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_MAX_GRAMMARS = 256
_MAX_VOCABULARIES = 8
# Whitespace between two tokens of JSON. Without a limit a small model may emit blanks without end.
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,32}"
_PARAM = "response_format"

Vocabulary = tuple[str, frozenset[int]]


class SchemaGrammar:
    """A schema compiled for one vocabulary."""

    def __init__(self, matcher: LLMatcher, first_allowed: npt.NDArray[np.int32]) -> None:
        self._matcher = matcher
        self._first_allowed = first_allowed

    def start(self) -> "SchemaMatcher":
        """Returns a new matcher for one answer."""
        return SchemaMatcher(self._matcher.deep_copy(), self._first_allowed)


class SchemaMatcher:
    """The state of one answer in the grammar. End tokens are allowed only where the answer is complete."""

    def __init__(self, matcher: LLMatcher, allowed: npt.NDArray[np.int32]) -> None:
        self._matcher = matcher
        self._allowed = allowed

    def allowed_tokens(self) -> npt.NDArray[np.int32]:
        """The tokens that may come next, as a bit mask: bit t % 32 of word t // 32 is token t."""
        return self._allowed

    def accept_token(self, token_id: int) -> None:
        """Advance by this token. Raises InvalidRequest where the schema exceeds llguidance's limits."""
        self._matcher.consume_token(token_id)
        self._allowed = _allowed_next(self._matcher)


class GrammarCache:
    """The most recently used compiled schemas. Thread-safe."""

    def __init__(self) -> None:
        self._grammars: OrderedDict[tuple[Vocabulary, OutputSchema], SchemaGrammar] = OrderedDict()
        self._vocabularies: OrderedDict[Vocabulary, LLTokenizer] = OrderedDict()
        self._lock = threading.Lock()

    def get(
        self,
        schema: OutputSchema,
        tokenizer: PreTrainedTokenizerBase,
        *,
        tokenizer_digest: str,
        end_ids: Collection[int],
    ) -> SchemaGrammar:
        """Returns the schema's grammar. Raises InvalidRequest where it can't be compiled."""
        vocabulary = (tokenizer_digest, frozenset(end_ids))
        key = (vocabulary, schema)
        with self._lock:
            if key in self._grammars:
                self._grammars.move_to_end(key)
                return self._grammars[key]
            llg_tokenizer = self._vocabulary(vocabulary, tokenizer)
        # Outside the lock, so that other requests do not wait for a large schema.
        grammar = _compile(schema, llg_tokenizer)
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


def _compile(schema: OutputSchema, vocabulary: LLTokenizer) -> SchemaGrammar:
    options: JsonCompileOptions = {"whitespace_pattern": _WHITESPACE, "lenient": not schema.strict}
    try:
        grammar = LLMatcher.grammar_from_json_schema(schema.source, overrides=options)
    except ValueError as error:
        raise InvalidRequest(f"The schema can't be used: {error}.", param=_PARAM) from error
    matcher = LLMatcher(vocabulary, grammar, log_level=0)
    return SchemaGrammar(matcher, _allowed_next(matcher))


def _allowed_next(matcher: LLMatcher) -> npt.NDArray[np.int32]:
    _check(matcher)
    # A bytearray, because torch.from_numpy wants writable memory.
    allowed = np.frombuffer(bytearray(matcher.compute_bitmask()), dtype=np.int32)
    _check(matcher)
    return allowed


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        problem = " ".join(matcher.get_error().split())
        raise InvalidRequest(
            f"The schema can't be used: {problem}.",
            param=_PARAM,
            hint="Without `strict`, keywords that are not supported are passed over.",
        )
