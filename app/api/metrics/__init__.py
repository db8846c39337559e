"""GET /metrics: requests, queues, devices and engines, for Prometheus."""
