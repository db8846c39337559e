"""The OpenAI API under /v1: models, chat, completions, files, fine-tuning jobs."""
