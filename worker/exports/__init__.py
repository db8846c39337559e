"""Adapters on their way out: merged, converted, compared with the live adapter. Knows neither training nor
serving.
"""
