"""Answers parsed while they are generated: thoughts, text, and calls of functions."""
