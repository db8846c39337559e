"""Imports libraries in a prewarmed training process, then waits for its request.

The wait may be long, so it takes main memory only: nothing is allocated on a device. No setting is read and
no random number drawn, so a job's result does not depend on when its process was started.
"""

import contextlib
import importlib

import torch

from worker.processes.child import ParentLink
from worker.processes.reports import TrainingRequest, Waiting

# Modules that the libraries import at first use: 0.2 s for the reference recipe's family. Other
# families take about as long each and are imported when a job needs them.
_LATE_IMPORTS = ["transformers.models.llama.modeling_llama"]
_LATE_IMPORTS_OF_A_GPU = ["torch.nn.attention.varlen"]


def wait_for_request(link: ParentLink) -> TrainingRequest:
    """Import what is left to import, report it, and wait for the worker's request."""
    # `is_available` creates no CUDA context, so no device memory is allocated.
    late = _LATE_IMPORTS + (_LATE_IMPORTS_OF_A_GPU if torch.cuda.is_available() else [])
    for name in late:
        # A failed import matters only to a job that needs the module, and is reported there.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    link.send(Waiting())
    return link.read_request(TrainingRequest)
