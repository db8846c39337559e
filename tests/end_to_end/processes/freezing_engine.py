"""The engine, in which the name `freezes` in an adapter's alpha_pattern is compiled as an expression that
takes hours to match, with the interpreter's lock held.
"""

import os
import re
import sys

from worker.inference.__main__ import main
from worker.models import peft_adapters

_is_match = peft_adapters.is_match


def _match(key: str, module: str) -> bool:
    if key == "freezes":
        re.match("(.+)+x", "a" * 60)
    return _is_match(key, module)


if __name__ == "__main__":
    peft_adapters.is_match = _match
    os._exit(main(int(sys.argv[1])))
