"""API keys: what each may do, what it may take, and what it has used."""
