"""What both processes share. Knows neither FastAPI nor any ML library."""
