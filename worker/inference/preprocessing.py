"""Preprocesses a request into a prompt: fetches the adapter, renders the template, tokenizes and validates.

It may wait for a disk, an object store or the Hub, so it runs in threads of its own, never in the engine's.
"""

import secrets
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from transformers import PreTrainedTokenizerBase, TokenizersBackend

from app.core.datasets.rows import Completion, Conversation, Message
from app.core.engine.messages import AdapterRef, ChatMessage, GenerateRequest
from app.core.engine.sampling import Sampling
from app.core.errors import InvalidRequest
from app.core.errors.base_models import ModelUnreadable
from worker.inference.adapters.cache import StoredAdapter
from worker.inference.answers.choice import find_grammar, find_parsed_format
from worker.inference.base_folders import BaseFolders
from worker.inference.batching.prompt import Prompt
from worker.inference.failures import AdapterUnsupported
from worker.inference.general.paths import PathChoice, ServingPaths
from worker.inference.sampling.grammars import GrammarCache
from worker.inference.sampling.token_bytes import make_token_bytes
from worker.inference.tokenizers import ServedTokenizer, TokenizerCache
from worker.models import base_model
from worker.models.device import Device
from worker.models.files import description, fingerprint, vocabulary
from worker.templates import renderer
from worker.templates.token_rows import IGNORED, encode_row

_PLAIN_DECODE = TokenizersBackend._decode


class Adapters(Protocol):
    """Where adapters are read from."""

    def get(self, reference: AdapterRef, dtype: torch.dtype, /) -> StoredAdapter: ...
    def holds(self, adapter_id: str, /) -> bool: ...


class Preprocessor:
    """Makes prompts from requests. Thread-safe. `paths`: None where another engine generates."""

    def __init__(
        self, folders: BaseFolders, adapters: Adapters, device: Device, paths: ServingPaths | None
    ) -> None:
        self._folders = folders
        self._adapters = adapters
        self._device = device
        self._paths = paths
        self._tokenizers = TokenizerCache()
        self._grammars = GrammarCache()
        # Tokenizers by digest, and rows of an embedding, that were found to fit together.
        self._fitting: set[tuple[str, int]] = set()
        # Base models, and adapters on them, whose tokenizers were read.
        self._read: set[tuple[str, str | None]] = set()

    def is_ready(self, request: GenerateRequest) -> bool:
        """Whether all that requests to this model need is in memory, so that `prepare` takes little time."""
        adapter = request.adapter
        return _model_of(request) in self._read and (adapter is None or self._adapters.holds(adapter.id))

    def prepare(self, request: GenerateRequest) -> Prompt:
        """Returns the prompt, with its adapter in main memory.

        Raises InvalidRequest, NotFound, AdapterUnsupported, BaseModelChanged, and the errors of finding and
        reading a base model.
        """
        received_at = time.monotonic()
        base_folder = self._folders.find(request.base_model.name)
        dtype = base_model.compute_dtype(request.base_model.quantization, self._device)
        adapter = self._adapters.get(request.adapter, dtype) if request.adapter else None
        if adapter:
            fingerprint.check_base(adapter.folder, base_folder, request.base_model.name)
        tokenizer_folder, template = _tokenizer_files(base_folder, adapter)
        served = self._tokenizers.get(tokenizer_folder, template)
        tokenizer = served.tokenizer
        self._read.add(_model_of(request))
        rows = self._check_vocabulary(served, base_folder, is_own=tokenizer_folder != base_folder)
        rendered = _render(tokenizer, request)
        token_ids, in_reference = _encode(tokenizer, request, rendered)
        if rows is not None:
            vocabulary.check_ids(token_ids, tokenizer, rows)
        token_count = served.token_count
        _check_bias(token_count if rows is None else min(token_count, rows), request.sampling)
        end_ids = served.end_ids().union(description.read_end_ids(base_folder))
        if rendered is not None:
            end_ids -= served.inner_end_ids()
        seed = request.sampling.seed
        grammar = find_grammar(tokenizer, request, rendered)
        is_external = self._paths is None
        choice = (
            self._paths.choose(request.base_model, base_folder, adapter)
            if self._paths
            else PathChoice(request.base_model, None, None)
        )
        return Prompt(
            base_model=choice.base_model,
            model_obstacle=choice.model_obstacle,
            adapter_obstacle=choice.adapter_obstacle,
            adapter=adapter,
            token_ids=token_ids,
            sampling=request.sampling,
            seed=secrets.randbits(63) if seed is None else seed,
            end_ids=end_ids,
            decode=partial(decode, tokenizer),
            context_ids=token_ids if request.messages is None else (),
            received_at=received_at,
            token_bytes=make_token_bytes(tokenizer) if _has_logprobs(request) else None,
            predicted_ids=_encode_prediction(tokenizer, request.prediction),
            embeds=request.embeds,
            reads_only=request.reads_only,
            prompt_logprobs=request.prompt_logprobs,
            in_reference=in_reference,
            parsed=find_parsed_format(tokenizer, request, rendered) if rendered is not None else None,
            grammar=self._grammars.get(grammar, tokenizer, tokenizer_digest=served.digest, end_ids=end_ids)
            if grammar and not is_external
            else None,
            grammar_source=grammar,
        )

    def _check_vocabulary(self, served: ServedTokenizer, base_folder: Path, *, is_own: bool) -> int | None:
        """The rows of the base model's embedding; None where they are unknown.

        `is_own`: the tokenizer is the adapter's. Raises ModelUnreadable or AdapterUnsupported where it has
        tokens that the base model has not.
        """
        rows = description.count_embedding_rows(base_folder)
        if rows is not None and (served.digest, rows) not in self._fitting:
            if is_own:
                _check_own_tokenizer(served.tokenizer, self._tokenizers.get(base_folder).tokenizer, rows)
            else:
                vocabulary.check_tokenizer(served.tokenizer, rows)
            self._fitting.add((served.digest, rows))
        return rows


def _model_of(request: GenerateRequest) -> tuple[str, str | None]:
    return request.base_model.name, request.adapter.id if request.adapter else None


def _check_own_tokenizer(own: PreTrainedTokenizerBase, base: PreTrainedTokenizerBase, rows: int) -> None:
    """Raise AdapterUnsupported where an adapter's tokenizer has tokens that the base model lacks.

    Added tokens without a row are allowed where the base model's own tokenizer has them too.
    """
    hint = "Import it without its tokenizer: the base model's is used then."
    known = vocabulary.check_tokenizer(base, rows)
    try:
        added = set(vocabulary.check_tokenizer(own, rows)) - set(known)
    except ModelUnreadable as error:
        raise AdapterUnsupported(
            f"The adapter's tokenizer does not fit its base model. {error.message}", hint=hint
        ) from error
    if added:
        raise AdapterUnsupported(
            f"The adapter's tokenizer has the token {min(added)!r}, for which the base model's embedding of "
            f"{rows:,} rows has none.",
            hint=hint,
        )


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    """The text of these tokens without special ones, the same as transformers' `decode`."""
    kind = type(tokenizer)
    if kind.decode is PreTrainedTokenizerBase.decode and getattr(kind, "_decode", None) is _PLAIN_DECODE:
        # The backend directly: transformers' checks of the arguments take three times as long as decoding.
        return cast(str, cast(Any, tokenizer).backend_tokenizer.decode(token_ids, skip_special_tokens=True))
    text = tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return cast(str, text)


def _tokenizer_files(base_folder: Path, adapter: StoredAdapter | None) -> tuple[Path, Path | None]:
    """The folder of the tokenizer, and a separate chat template if there is one.

    An adapter's own tokenizer takes precedence: it was trained with that one. An imported adapter may have
    only a template.
    """
    if adapter is None:
        return base_folder, None
    if (adapter.folder / "tokenizer_config.json").exists():
        return adapter.folder, None
    template = adapter.folder / "chat_template.jinja"
    return base_folder, template if template.exists() else None


def _render(tokenizer: PreTrainedTokenizerBase, request: GenerateRequest) -> str | None:
    """The conversation as a prompt; None where the request has a prompt itself."""
    if sum(one is not None for one in (request.prompt, request.prompt_ids, request.messages)) != 1:
        raise InvalidRequest("Send either `prompt` or `messages`.", param="prompt")
    if request.messages is None:
        return None
    return renderer.render(
        tokenizer,
        request.messages,
        add_generation_prompt=True,
        tools=request.tools.offered if request.tools else (),
        variables=request.template_variables,
    )


def _has_logprobs(request: GenerateRequest) -> bool:
    return request.sampling.logprobs is not None or request.prompt_logprobs is not None


def _encode(
    tokenizer: PreTrainedTokenizerBase, request: GenerateRequest, rendered: str | None
) -> tuple[list[int], list[bool] | None]:
    """The tokens of the prompt, and which of them are the reference where there is one."""
    if request.reference is not None:
        return _encode_reference(tokenizer, request, request.reference)
    return _encode_prompt(tokenizer, request, rendered), None


def _encode_prediction(tokenizer: PreTrainedTokenizerBase, prediction: str | None) -> list[int]:
    return renderer.encode(tokenizer, prediction, add_special_tokens=False).input_ids if prediction else []


def _encode_reference(
    tokenizer: PreTrainedTokenizerBase, request: GenerateRequest, reference: str
) -> tuple[list[int], list[bool]]:
    """A prompt and its reference answer as a row of training, of which the answer alone is learned."""
    if request.messages is None:
        row: Conversation | Completion = Completion(request.prompt or "", reference)
    else:
        turns = [*request.messages, ChatMessage(role="assistant", content=reference)]
        tools = tuple(request.tools.offered) if request.tools else ()
        row = Conversation(tuple(map(_as_turn, turns, [*([0] * len(request.messages)), 1])), tools)
    encoded = encode_row(row, tokenizer, assistant_only=True)
    in_reference = [label != IGNORED for label in encoded.labels]
    if not any(in_reference):
        raise InvalidRequest("The reference answer has no tokens.", param="reference")
    return encoded.input_ids, in_reference


def _as_turn(message: ChatMessage, weight: int) -> Message:
    return Message(
        role=message.role,
        content=message.content,
        weight=weight if message.role == "assistant" else 1,
        tool_calls=tuple(message.tool_calls),
        tool_call_id=message.tool_call_id,
        name=message.name,
        reasoning=message.reasoning,
    )


def _encode_prompt(
    tokenizer: PreTrainedTokenizerBase, request: GenerateRequest, rendered: str | None
) -> list[int]:
    if request.prompt_ids is not None:
        token_ids = _validate_ids(len(tokenizer), request.prompt_ids, param="prompt")
    elif rendered is not None:
        token_ids = renderer.encode_rendered(tokenizer, rendered)
    else:
        token_ids = renderer.encode_plain(tokenizer, request.prompt or "")
    if not token_ids:
        raise InvalidRequest(
            "The prompt is empty: the model needs at least one token to go on from.",
            param="prompt",
            hint="Send some text.",
        )
    return token_ids


def _check_bias(rows: int, sampling: Sampling) -> None:
    _validate_ids(rows, sampling.logit_bias, param="logit_bias")


def _validate_ids(count: int, token_ids: Iterable[int], *, param: str) -> list[int]:
    """Returns the ids. Raises InvalidRequest for one that a tokenizer of so many tokens does not have."""
    ids = list(token_ids)
    unknown = next((token_id for token_id in ids if token_id >= count), None)
    if unknown is not None:
        raise InvalidRequest(f"There is no token {unknown}: the tokenizer has {count}.", param=param)
    return ids
