"""Answers of the model in training to a few prompts: before training, at evaluations, and at the end."""
