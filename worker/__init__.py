"""The process that owns the GPU: trains jobs one at a time and serves their adapters."""
