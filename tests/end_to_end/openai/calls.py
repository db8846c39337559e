"""A chat and a completion of the tiny model with the official client, and their defaults."""

from typing import Any

import openai

MODEL = "tiny-llama"
HI: list[Any] = [{"role": "user", "content": "How do I cancel a job?"}]
QUANTIZATION = {"load_in_4bit": False}


def chat(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(
        **{"model": MODEL, "messages": HI, "temperature": 0, "max_completion_tokens": 12, **options}
    )


def complete(client: openai.OpenAI, **options: Any) -> Any:
    return client.completions.create(
        **{"model": MODEL, "prompt": "How do I", "temperature": 0, "max_tokens": 12, **options}
    )
