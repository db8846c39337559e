"""Webhooks: the registered ones, and the deliveries of events to them."""
