"""A whole model: the adapter merged into its base model tensor by tensor, and the files of the result."""
