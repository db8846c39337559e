"""Jobs: what people do with them, the workers' queue, events, inputs, continuation, OpenAI's fine-tuning."""
