"""What a job would do, and rows as the model will see them: before anything is started."""
