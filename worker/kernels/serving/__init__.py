"""Kernels of the inference engine: the paged cache, decode steps, adapters of many rows."""
