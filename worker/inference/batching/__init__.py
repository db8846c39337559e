"""Batching without torch: the scheduler, sequences, and the blocks of the KV cache."""
