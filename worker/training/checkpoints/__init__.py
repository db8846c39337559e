"""Checkpoints of a job: written, verified, saved after epochs, and continued from."""
