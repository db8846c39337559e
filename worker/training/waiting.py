"""The time before a training child has its request: it may be long, so nothing is held but main memory.

Nothing is put on a device here, no setting is read and no random number drawn: how a job goes does not depend
on when its process was started.
"""

import contextlib
import importlib

import torch

from worker.processes.child import ParentLink
from worker.processes.reports import TrainingRequest, Waiting

# What the libraries import when it is first needed: 0.2 s for the reference recipe's family, 0.5 s for Liger,
# which only a GPU runs. Other families cost about as much each, and are left until they are asked for.
_LATE_IMPORTS = ["transformers.models.llama.modeling_llama"]
_LATE_IMPORTS_OF_A_GPU = ["torch.nn.attention.varlen", "liger_kernel.transformers.monkey_patch"]


def wait_for_request(link: ParentLink) -> TrainingRequest:
    """Import the rest, say so, and wait for the worker's word."""
    # Asking this makes no context on the device: no memory is taken there.
    late = _LATE_IMPORTS + (_LATE_IMPORTS_OF_A_GPU if torch.cuda.is_available() else [])
    for name in late:
        # Whatever is wrong with it matters only to a job that needs it, and is explained there.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    link.send(Waiting())
    return link.read_request(TrainingRequest)
