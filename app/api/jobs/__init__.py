"""Routes of jobs, their events, logs and loss curves."""
