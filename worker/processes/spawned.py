"""What a process that `multiprocessing` has spawned, to compute on the CPU, does first."""

import multiprocessing
import os
import threading


def prepare() -> None:
    """Hide the GPU, use one thread, and end with the parent, however that is killed.

    torch and tokenizers read these variables when they are imported, which is to be later.
    """
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    threading.Thread(target=_end_with_parent, daemon=True, name="parent watch").start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
