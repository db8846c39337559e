"""What `make compose-check` runs: the compose files read, the images built, the stack walked through."""
