"""What a training process reports: metrics, events, warnings; and the guard of the loss."""
