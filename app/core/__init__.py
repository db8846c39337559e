"""What the API process and the worker process share. Knows neither FastAPI nor any ML library."""
