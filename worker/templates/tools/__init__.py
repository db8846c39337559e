"""Functions, calls and reasoning in chat templates: what a template knows of them, and a plain form."""
