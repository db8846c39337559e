"""Chat templates by model family, the one renderer, and rows as tokens and labels."""
