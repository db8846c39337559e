"""Graders: what compares a model's answer with what was expected, in OpenAI's shapes and a few more.

Knows neither datasets nor evaluations; models are asked through callables that are passed in.
"""
