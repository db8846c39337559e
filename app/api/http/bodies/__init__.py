"""What is read of a request besides its headers: limits, validation, uploads."""
