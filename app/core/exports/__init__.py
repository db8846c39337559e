"""Exports of adapters to other formats: what people do with them, the workers' queue, results."""
