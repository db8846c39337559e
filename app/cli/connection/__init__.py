"""Which API a command speaks to: addresses and keys, the HTTP client, downloads."""
