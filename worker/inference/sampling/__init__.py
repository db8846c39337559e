"""From scores to text: logits processors, sampling, grammars, detokenization."""
