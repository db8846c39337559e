"""Routes of adapters and of their imports."""
