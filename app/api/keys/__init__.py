"""Routes of API keys and of what they have used."""
