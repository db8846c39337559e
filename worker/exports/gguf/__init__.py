"""GGUF files for llama.cpp: merged models and adapters."""
