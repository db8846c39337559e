"""Answers of the model in training to a few prompts, and base model and adapter on rows held out."""
