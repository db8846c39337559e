"""Ways to train faster with the same mathematics. Each stands behind a door of a library's."""
