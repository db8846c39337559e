"""Exports of adapters: requests, the queue of workers, results."""
