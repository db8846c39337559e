"""Routes of webhooks, and the task that sends their deliveries."""
