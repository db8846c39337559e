"""An external vLLM in place of the engine: prompts and answers as the engine has them, tokens from vLLM."""
