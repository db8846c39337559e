"""The OpenAI API under /v1: models, chat, completions, embeddings, files, fine-tuning jobs."""
