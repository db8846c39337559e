"""Secrets of webhooks and what they sign, as standardwebhooks.com and OpenAI's clients have it. Pure."""

import base64
import binascii
import hashlib
import hmac
import secrets

_PREFIX = "whsec_"
_SECRET_BYTES = 32


def new_secret() -> str:
    """256 random bits as `whsec_<base64>`."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def sign(secret: str, delivery_id: str, timestamp: int, body: str) -> dict[str, str]:
    """The three headers that a receiver checks; `timestamp` is that of this attempt, in Unix seconds."""
    signed = f"{delivery_id}.{timestamp}.{body}".encode()
    signature = base64.b64encode(hmac.new(_key(secret), signed, hashlib.sha256).digest()).decode()
    return {
        "webhook-id": delivery_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{signature}",
    }


def is_secret(text: str) -> bool:
    """Whether one can sign with it: `whsec_` and base64, or any text without that beginning."""
    try:
        return bool(_key(text))
    except (binascii.Error, ValueError):
        return False


def _key(secret: str) -> bytes:
    if secret.startswith(_PREFIX):
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    return secret.encode()
