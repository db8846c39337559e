"""What the columns of a file may mean: its first records, and column maps that are likely to be right."""
