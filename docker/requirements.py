"""Prints what pyproject.toml asks for, one requirement a line: `requirements.py [EXTRA …] < pyproject.toml`.

The images install packages before they copy any code, so that a change of the code rebuilds in seconds.
"""

import sys
import tomllib

project = tomllib.load(sys.stdin.buffer)["project"]
extras = project["optional-dependencies"]
print(*project["dependencies"], *(line for extra in sys.argv[1:] for line in extras[extra]), sep="\n")
