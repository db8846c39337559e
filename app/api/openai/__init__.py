"""The OpenAI API under /v1: models, completions, chat."""
