"""Thin HTTP: parse the request, call the core, answer."""
