"""Exports in 4 bits by AWQ or GPTQ: llm-compressor rounds them, calibrated on the adapter's rows."""
