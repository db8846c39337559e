"""Evaluations: several models asked the same rows, and their answers graded; the workers' queue, results."""
