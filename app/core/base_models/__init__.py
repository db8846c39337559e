"""Downloads of base models from the Hub, and what needs a base model."""
