"""Runs a module as a child of the worker: `python -m worker.processes.module_start <module> <report_fd>`.

The module's imports run without garbage collection, which its `ParentLink` enables. Knows no torch.
"""

import gc
import runpy
import sys


def main() -> None:
    """Run the module as `python -m` would."""
    gc.disable()
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
