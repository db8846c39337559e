"""The process of a Python grader: without network, files or other processes. Run as a script.

Reads one JSON object from standard input, with the source, the sample, the item and the limits. Writes one to
standard output: `score`, `error`, or `unavailable` with the reason why this host can't isolate a process.

The libraries that the source imports are loaded first. Then seccomp refuses every system call but those that
compute, tell the time, read standard input and write to pipes, and only then the source itself runs. That
needs no privileges and works within a container with Docker's default profile. The list of libraries is for
clear errors; what isolates is seccomp.
"""

import ast
import ctypes
import importlib
import json
import math
import os
import resource
import signal
import sys
import traceback

# What a source may import: the standard library without what needs files, network or processes, and packages
# that OpenAI's graders have and this installation may have too.
_LIBRARIES = """
__future__ abc array ast base64 binascii bisect builtins calendar cmath collections colorsys contextlib copy
csv dataclasses datetime decimal difflib enum fnmatch fractions functools gc hashlib heapq hmac html inspect
io itertools json keyword locale logging math numbers operator os pprint random re secrets statistics string
struct sys textwrap threading time tokenize traceback types typing typing_extensions unicodedata urllib uuid
warnings xml zlib
jsonschema_rs nltk numpy pydantic rapidfuzz regex
"""
LIBRARIES = frozenset(_LIBRARIES.split())
# Modules that the standard library imports only when they are needed, when there are no files any more.
_LATE_IMPORTS = (
    "_strptime",
    "encodings.ascii",
    "encodings.latin_1",
    "encodings.idna",
    "linecache",
    "traceback",
)
_ALLOWED_CALLS = """
brk clock_getres clock_gettime clock_nanosleep exit exit_group fstat futex getpid getrandom gettid
gettimeofday lseek madvise mmap mprotect mremap munmap nanosleep read restart_syscall rt_sigaction
rt_sigprocmask rt_sigreturn sched_getaffinity sched_yield sigaltstack write writev
"""
_PR_SET_PDEATHSIG = 1
_MAX_ERROR = 2000


def main() -> None:
    """Run the grader that standard input holds, and write what it gave."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    work = json.load(sys.stdin.buffer)
    output = os.dup(1)
    # What the source prints goes nowhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    _limit(work["cpu_seconds"], work["memory_bytes"])
    problem = _load_libraries(work["source"])
    try:
        _isolate()
    except Exception as error:
        answer: dict[str, object] = {"unavailable": f"{type(error).__name__}: {error}"}
    else:
        answer = {"error": problem} if problem else _run(work)
    os.write(output, json.dumps(answer).encode())
    os._exit(0)


def _limit(cpu_seconds: int, memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _load_libraries(source: str) -> str | None:
    """Import what the source imports. Returns what is wrong with that, or None."""
    for name in (*_LATE_IMPORTS, *_imports(source)):
        package = name.partition(".")[0]
        if name not in _LATE_IMPORTS and package not in LIBRARIES:
            known = ", ".join(sorted(LIBRARIES))
            return f"ImportError: a grader can't import {package!r}, only {known}."
        try:
            importlib.import_module(name)
        except ImportError as error:
            return f"ImportError: {error}"
    return None


def _imports(source: str) -> list[str]:
    """Returns the modules that the source imports, and what may be modules among what it imports of them."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.append(node.module)
            if node.module.partition(".")[0] in LIBRARIES:
                found += _submodules(node.module, [alias.name for alias in node.names])
    return found


def _submodules(package: str, names: list[str]) -> list[str]:
    module = importlib.import_module(package)
    missing = [name for name in names if name != "*" and not hasattr(module, name)]
    return [f"{package}.{name}" for name in missing]


def _isolate() -> None:
    """Refuse all other system calls from now on. Raises where the host can't do that."""
    # It raises RuntimeError where libseccomp is not installed.
    import pyseccomp

    refuse = pyseccomp.SyscallFilter(pyseccomp.ERRNO(1))
    for name in _ALLOWED_CALLS.split():
        refuse.add_rule(pyseccomp.ALLOW, name)
    refuse.load()


def _run(work: dict[str, object]) -> dict[str, object]:
    names: dict[str, object] = {"__name__": "grader", "__builtins__": __builtins__}
    try:
        exec(compile(str(work["source"]), "grader.py", "exec"), names)
        score = names["grade"](work["sample"], work["item"])  # type: ignore[operator]
        number = float(score)
    except MemoryError:
        return {"error": "MemoryError: the grader needs more memory than it may have."}
    except BaseException as error:
        return {"error": _explain(error)}
    if not math.isfinite(number):
        return {"error": f"`grade` returned {number}, which is no finite number."}
    return {"score": number}


def _explain(error: BaseException) -> str:
    """The error, and the line of the source that raised it."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "grader.py"
    ]
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {error}"[:_MAX_ERROR]


if __name__ == "__main__":
    main()
