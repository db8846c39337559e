"""The engine: generates text from a base model and its adapters."""
