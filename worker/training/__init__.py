"""One training job, in a process of its own."""
