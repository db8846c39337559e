"""Preprocesses a request into a prompt: fetches the adapter, renders the template, tokenizes and validates.

It may wait for a disk, an object store or the Hub, so it runs in threads of its own, never in the engine's.
"""

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase, TokenizersBackend

from app.core.engine.messages import GenerateRequest
from app.core.engine.sampling import Sampling
from app.core.errors import InvalidRequest
from app.core.errors.base_models import ModelUnreadable
from worker.inference.adapters.cache import AdapterCache, StoredAdapter
from worker.inference.answers.choice import end_ids_of_answers, find_grammar, find_parsed_format
from worker.inference.batching.sequence import Prompt
from worker.inference.failures import AdapterUnsupported
from worker.inference.general.paths import ServingPaths
from worker.inference.sampling.grammars import GrammarCache
from worker.inference.sampling.token_bytes import make_token_bytes
from worker.models import base_model
from worker.models.device import Device
from worker.models.files import description, fingerprint, location, vocabulary
from worker.models.files.reading import reading
from worker.templates import renderer
from worker.templates.choice import read_model_type, set_template

_MAX_TOKENIZERS = 64
_PLAIN_DECODE = TokenizersBackend._decode
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "vocab.json", "vocab.txt", "merges.txt", "config.json"),
)


class Preprocessor:
    """Makes prompts from requests. Thread-safe."""

    def __init__(
        self, models_folder: Path, adapters: AdapterCache, device: Device, paths: ServingPaths
    ) -> None:
        self._models_folder = models_folder
        self._adapters = adapters
        self._device = device
        self._paths = paths
        self._tokenizers = TokenizerCache()
        self._grammars = GrammarCache()
        # Tokenizers by digest, and rows of an embedding, that were found to fit together.
        self._fitting: set[tuple[str, int]] = set()

    def prepare(self, request: GenerateRequest) -> Prompt:
        """Returns the prompt, with its adapter in main memory.

        Raises InvalidRequest, NotFound, AdapterUnsupported, BaseModelChanged, and the errors of finding and
        reading a base model.
        """
        received_at = time.monotonic()
        base_folder = location.locate(request.base_model.name, self._models_folder)
        dtype = base_model.compute_dtype(request.base_model.quantization, self._device)
        adapter = self._adapters.get(request.adapter, dtype) if request.adapter else None
        if adapter:
            fingerprint.check_base(adapter.folder, base_folder, request.base_model.name)
        tokenizer_folder, template = _tokenizer_files(base_folder, adapter)
        digest, tokenizer = self._tokenizers.get(tokenizer_folder, template)
        rows = self._check_vocabulary(digest, tokenizer, base_folder, is_own=tokenizer_folder != base_folder)
        rendered = _render(tokenizer, request)
        token_ids = _encode(tokenizer, request, rendered)
        if rows is not None:
            vocabulary.check_ids(token_ids, tokenizer, rows)
        _check_bias(len(tokenizer) if rows is None else min(len(tokenizer), rows), request.sampling)
        end_ids = renderer.end_token_ids(tokenizer, description.read_end_ids(base_folder))
        if rendered is not None:
            end_ids = end_ids_of_answers(tokenizer, end_ids)
        seed = request.sampling.seed
        grammar = find_grammar(tokenizer, request, rendered)
        choice = self._paths.choose(request.base_model, base_folder, adapter)
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
            token_bytes=make_token_bytes(tokenizer) if request.sampling.logprobs is not None else None,
            embeds=request.embeds,
            parsed=find_parsed_format(tokenizer, request, rendered) if rendered is not None else None,
            grammar=self._grammars.get(grammar, tokenizer, tokenizer_digest=digest, end_ids=end_ids)
            if grammar
            else None,
        )

    def _check_vocabulary(
        self, digest: str, tokenizer: PreTrainedTokenizerBase, base_folder: Path, *, is_own: bool
    ) -> int | None:
        """The rows of the base model's embedding; None where they are unknown.

        `is_own`: the tokenizer is the adapter's. Raises ModelUnreadable or AdapterUnsupported where it has
        tokens that the base model has not.
        """
        rows = description.count_embedding_rows(base_folder)
        if rows is not None and (digest, rows) not in self._fitting:
            if is_own:
                _check_own_tokenizer(tokenizer, self._tokenizers.get(base_folder)[1], rows)
            else:
                vocabulary.check_tokenizer(tokenizer, rows)
            self._fitting.add((digest, rows))
        return rows


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


class TokenizerCache:
    """The most recently used tokenizers, shared by folders with the same files. Thread-safe."""

    def __init__(self) -> None:
        self._tokenizers: OrderedDict[str, PreTrainedTokenizerBase] = OrderedDict()
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._checking: dict[str, threading.Lock] = {}

    def get(self, folder: Path, template: Path | None = None) -> tuple[str, PreTrainedTokenizerBase]:
        """Returns the digest of the folder's tokenizer files, and the tokenizer with its chat template.

        `template` is a file that replaces the folder's own chat template. Raises ModelUnreadable.
        """
        with description.reading_tokenizer(folder):
            digest = _digest(folder, template)
        found = self._find(digest)
        if found is None:
            with self._lock:
                checking = self._checking.setdefault(digest, threading.Lock())
            with checking:
                found = self._find(digest) or self._load(digest, folder, template)
        return digest, found

    def _find(self, digest: str) -> PreTrainedTokenizerBase | None:
        with self._lock:
            if digest in self._tokenizers:
                self._tokenizers.move_to_end(digest)
            return self._tokenizers.get(digest)

    def _load(self, digest: str, folder: Path, template: Path | None) -> PreTrainedTokenizerBase:
        """Load a tokenizer. Requests with others need not wait while its chat template is tried."""
        try:
            with self._reading:
                tokenizer = description.load_tokenizer(folder)
            own = _read_template(template) if template else None
            set_template(tokenizer, model_type=read_model_type(folder), wanted=own)
        finally:
            with self._lock:
                self._checking.pop(digest, None)
        with self._lock:
            self._tokenizers[digest] = tokenizer
            while len(self._tokenizers) > _MAX_TOKENIZERS:
                self._tokenizers.popitem(last=False)
        return tokenizer


def _read_template(path: Path) -> str:
    with reading(
        f"{path.name} in {path.parent.name!r}", hint="Import the adapter again.", raises=AdapterUnsupported
    ):
        return path.read_text()


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


def _encode(tokenizer: PreTrainedTokenizerBase, request: GenerateRequest, rendered: str | None) -> list[int]:
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


def _digest(folder: Path, template: Path | None) -> str:
    digest = hashlib.sha256()
    files = {name: folder / name for name in _TOKENIZER_FILES} | ({"template": template} if template else {})
    for name, path in files.items():
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()
