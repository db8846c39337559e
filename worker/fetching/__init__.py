"""The rows of a Hub dataset, fetched in a process of their own."""
