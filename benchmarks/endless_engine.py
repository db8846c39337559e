"""The worker's own engine process, but no token ends an answer and every token decodes to a letter.

So each answer has as many tokens as requested, and each of them arrives as text, whatever the model.
"""

import os
import sys
from typing import Any

from worker.inference import preprocessing
from worker.inference.__main__ import main
from worker.models.files import description
from worker.templates import renderer


def letter_decoder(tokenizer: Any, decode: Any) -> Any:
    """Returns a decode function that maps each id to a letter of the tokenizer first."""
    letters = [index for index in range(min(1000, len(tokenizer))) if decode(tokenizer, [index]).isalpha()]
    return lambda token_ids: decode(tokenizer, [letters[token_id % len(letters)] for token_id in token_ids])


def without_end() -> None:
    decode, decoders = preprocessing.decode, {}

    def decode_letters(tokenizer: Any, token_ids: list[int]) -> str:
        if id(tokenizer) not in decoders:
            decoders[id(tokenizer)] = letter_decoder(tokenizer, decode)
        return str(decoders[id(tokenizer)](token_ids))

    preprocessing.decode = decode_letters
    renderer.end_token_ids = lambda *_: set()
    description.read_end_ids = lambda *_: set()


if __name__ == "__main__":
    without_end()
    status = main(int(sys.argv[1]))
    os._exit(status)
