"""The base model as the engine runs it: layers, attention over the KV cache, captured graphs."""
