"""Ollama's Modelfile: the chat template in Go's syntax, stop words and parameters."""
