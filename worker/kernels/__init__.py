"""Triton kernels of training and serving. They take tensors only; each has a PyTorch equivalent elsewhere."""
