"""What a job will need and how it will run: shapes, memory, automatic settings, optimizations."""
