"""Conversations of a record: order, messages, their content, functions and calls of them."""
