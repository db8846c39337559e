"""`tunesmith generate` and `tunesmith chat`."""
