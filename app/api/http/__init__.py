"""Common to all routes: authentication, limits, origins, headers, errors, idempotency, ranges, uploads."""
