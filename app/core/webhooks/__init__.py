"""Webhooks: subscriptions, and deliveries of events to them."""
