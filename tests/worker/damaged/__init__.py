"""Damaged base models, hostile chat templates and odd rows, each made from the tiny model or written out.

None of them may end in an internal error.
"""
