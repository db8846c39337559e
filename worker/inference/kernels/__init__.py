"""Triton kernels of the decode step. They know tensors only; every one has a plain torch twin elsewhere."""
