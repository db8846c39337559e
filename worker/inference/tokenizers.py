"""Tokenizers that serve requests, and what every request needs of them, which is found once.

A digest of a tokenizer's files reads megabytes, and finding the tokens that end an answer takes several
renderings of its template: a request that pays for either waits long for its first token.
"""

import hashlib
import threading
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from worker.inference.answers.choice import find_inner_end_ids
from worker.inference.failures import AdapterUnsupported
from worker.models.files import description
from worker.models.files.reading import reading
from worker.models.files.versions import FileVersion, read_version
from worker.templates import renderer
from worker.templates.choice import read_model_type, set_template

_MAX_TOKENIZERS = 64
_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "vocab.json", "vocab.txt", "merges.txt", "config.json"),
)


class ServedTokenizer:
    """A tokenizer with its chat template. `digest`: of its files. Thread-safe."""

    def __init__(self, digest: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self.digest = digest
        self.tokenizer = tokenizer
        self.token_count = len(tokenizer)
        self._finding = threading.Lock()
        self._ends: frozenset[int] | None = None
        self._inner_ends: frozenset[int] | None = None

    def end_ids(self) -> frozenset[int]:
        """The tokens that end an answer: the tokenizer's, and those that the template writes.

        Found once, by the first request; others wait for it. Raises what rendering the template raises.
        """
        with self._finding:
            if self._ends is None:
                self._ends = frozenset(renderer.end_token_ids(self.tokenizer, None))
            return self._ends

    def inner_end_ids(self) -> frozenset[int]:
        """Those of the end tokens that end a part of a rendered answer only. Found once, as `end_ids`."""
        with self._finding:
            if self._inner_ends is None:
                self._inner_ends = find_inner_end_ids(self.tokenizer)
            return self._inner_ends


class TokenizerCache:
    """The most recently used tokenizers, shared by folders with the same files. Thread-safe."""

    def __init__(self) -> None:
        self._tokenizers: OrderedDict[str, ServedTokenizer] = OrderedDict()
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._checking: dict[str, threading.Lock] = {}

    def get(self, folder: Path, template: Path | None = None) -> ServedTokenizer:
        """Returns the folder's tokenizer with its chat template.

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
        return found

    def _find(self, digest: str) -> ServedTokenizer | None:
        with self._lock:
            if digest in self._tokenizers:
                self._tokenizers.move_to_end(digest)
            return self._tokenizers.get(digest)

    def _load(self, digest: str, folder: Path, template: Path | None) -> ServedTokenizer:
        """Load a tokenizer. Requests with others need not wait while its chat template is tried."""
        try:
            with self._reading:
                tokenizer = description.load_tokenizer(folder)
            own = _read_template(template) if template else None
            set_template(tokenizer, model_type=read_model_type(folder), wanted=own)
        finally:
            with self._lock:
                self._checking.pop(digest, None)
        served = ServedTokenizer(digest, tokenizer)
        with self._lock:
            self._tokenizers[digest] = served
            while len(self._tokenizers) > _MAX_TOKENIZERS:
                self._tokenizers.popitem(last=False)
        return served


def _read_template(path: Path) -> str:
    with reading(
        f"{path.name} in {path.parent.name!r}", hint="Import the adapter again.", raises=AdapterUnsupported
    ):
        return path.read_text()


def _digest(folder: Path, template: Path | None) -> str:
    files = {name: folder / name for name in _FILES} | ({"template": template} if template else {})
    return _digest_files(tuple((name, read_version(path)) for name, path in files.items()))


@lru_cache(maxsize=1024)
def _digest_files(files: tuple[tuple[str, FileVersion | None], ...]) -> str:
    """The SHA-256 of the contents, cached while the files do not change: some have tens of megabytes."""
    digest = hashlib.sha256()
    for name, version in files:
        content = Path(version.path).read_bytes() if version else b""
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()
