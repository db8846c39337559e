"""Export of adapters: merge into the base model, convert to a file format, verify against the live adapter.

Knows neither training nor serving.
"""
