"""`python -m app.health_probe`: exit status 0 when the API of this container responds to `GET /health`.

The image's health check runs it every few seconds, so it imports nothing of the API.
"""

import os
import sys
import urllib.error
import urllib.request

_TIMEOUT_SECONDS = 5


def is_healthy(port: int) -> bool:
    """Whether `GET /health` on this port of the loopback address returns 200."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://127.0.0.1:{port}/health", timeout=_TIMEOUT_SECONDS) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(0 if is_healthy(int(os.environ.get("TUNESMITH_PORT", "8000"))) else 1)
