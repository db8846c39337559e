"""Triton kernels of a training step. They know tensors only; every one has a plain twin elsewhere."""
