"""Before a job starts: its steps, memory, disk and time, and previews of rows as the model reads them."""
