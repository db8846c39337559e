"""Checkpoints of a job: written, checked, kept for epochs, and continued from."""
