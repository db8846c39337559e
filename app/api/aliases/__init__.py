"""Routes of aliases."""
