"""Removes secrets from text that a person will read."""

import os
import re

_SECRETS = re.compile(r"hf_\w{8,}|(?<=://)[^/@\s]+(?=@)|(?<=[Bb]earer )\S+")
_SECRET_NAMES = re.compile(r"(KEY|TOKEN|PASSWORD|SECRET)$", re.IGNORECASE)
# A shorter value, as `1` of a flag, is part of many texts.
_MIN_LENGTH = 8


def redact(text: str) -> str:
    """The text without access tokens, without user names and passwords in URLs, and without the values of
    environment variables whose names say that they are secret."""
    for name, value in os.environ.items():
        if len(value) >= _MIN_LENGTH and _SECRET_NAMES.search(name):
            text = text.replace(value, "[secret]")
    return _SECRETS.sub("[secret]", text)
