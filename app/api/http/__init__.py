"""What every request passes: authentication, limits, origins, headers, errors, idempotency, ranges."""
