"""The general path: what the paged engine can't compute, computed by transformers and PEFT."""
