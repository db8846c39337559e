"""`tunesmith jobs`: commands, job files, and the views of a job."""
