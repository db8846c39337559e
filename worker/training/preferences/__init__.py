"""Training from preferences: losses over whole answers, their reference model, and their batches."""
