"""`tunesmith datasets`: commands and uploads."""
