"""Jobs: requests, the queue of workers, events, inputs, continuation, OpenAI's fine-tuning."""
