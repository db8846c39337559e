"""Kernels of a training step. Without a GPU they run in Triton's interpreter."""
