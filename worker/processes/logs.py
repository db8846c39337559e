"""The logs of the worker's processes, on standard error. Knows no torch."""

import logging


def set_up_logging() -> None:
    """Log from INFO on, and requests over HTTP from WARNING on.

    The Hub's client logs every URL, and URLs of files carry signatures.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
