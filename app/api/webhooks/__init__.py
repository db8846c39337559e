"""Routes of webhooks, and the loop that sends their deliveries."""
