"""`tunesmith import openai`: what was exported from OpenAI, as datasets, jobs and evaluations."""
