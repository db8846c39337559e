"""`tunesmith aliases`: names that stay."""
