"""Runs chat templates in processes with limits: a template is a program of whoever wrote the model."""
