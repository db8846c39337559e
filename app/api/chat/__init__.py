"""Conversations and functions in requests, in OpenAI's form, for every route that takes them."""
