"""What the API and the engine process send each other; base models; running workers."""
