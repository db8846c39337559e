"""JSON that keeps to a schema: which tokens may come next, by llguidance.

A schema compiles once for each vocabulary. A mask is computed on the host, right after each token, so that
what goes wrong there is the trouble of one answer alone.
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
# Between two tokens of JSON. Without a limit a small model may go on with blanks for ever.
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,32}"
_PARAM = "response_format"

Vocabulary = tuple[str, frozenset[int]]


class SchemaGrammar:
    """A compiled schema."""

    def __init__(self, matcher: LLMatcher, first_allowed: npt.NDArray[np.int32]) -> None:
        self._matcher = matcher
        self._first_allowed = first_allowed

    def start(self) -> "SchemaMatcher":
        """A matcher for one answer."""
        return SchemaMatcher(self._matcher.deep_copy(), self._first_allowed)


class SchemaMatcher:
    """Where one answer stands in the grammar. An end token is allowed where it accepts, and only there."""

    def __init__(self, matcher: LLMatcher, allowed: npt.NDArray[np.int32]) -> None:
        self._matcher = matcher
        self._allowed = allowed

    def allowed_tokens(self) -> npt.NDArray[np.int32]:
        """The tokens that may come next, a bit each, by token id."""
        return self._allowed

    def accept_token(self, token_id: int) -> None:
        """The answer goes on with this token. Raises InvalidRequest where the schema is too much work."""
        self._matcher.consume_token(token_id)
        self._allowed = _allowed_next(self._matcher)


class GrammarShelf:
    """The latest compiled schemas. Safe to call from many threads."""

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
        """The schema's grammar. Raises InvalidRequest where it can't be compiled."""
        vocabulary = (tokenizer_digest, frozenset(end_ids))
        key = (vocabulary, schema)
        with self._lock:
            if key in self._grammars:
                self._grammars.move_to_end(key)
                return self._grammars[key]
            ours = self._vocabulary(vocabulary, tokenizer)
        # Outside of the lock: an enormous schema keeps nobody else waiting.
        grammar = _compile(schema, ours)
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
    # A bytearray, because torch takes no memory that can't be written to.
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
