"""Runs a module as a child of the worker: `python -m worker.processes.module_start <module> <report_fd>`.

The module's imports run without garbage collection, which its `ParentLink` enables. Knows no torch.
"""

import gc
import runpy
import sys


def main() -> None:
    """Run the module as `python -m` would, but that this one stays `__main__` in `sys.modules`.

    Processes that `multiprocessing` spawns import that one: a module that imports torch would take seconds.
    """
    gc.disable()
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
    main()
