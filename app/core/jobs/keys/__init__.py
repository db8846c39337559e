"""What jobs have used, for the keys that submitted them."""
