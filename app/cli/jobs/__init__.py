"""`tunesmith jobs`: the commands, job files, and how jobs are displayed."""
