"""`tunesmith adapters`: commands and imports."""
