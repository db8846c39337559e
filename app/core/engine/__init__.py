"""Messages between the API and the engine process; base models; running workers."""
