"""What is read of a request besides its headers: limits, compression, text, validation, uploads."""
