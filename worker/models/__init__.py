"""Devices, base models and their weights, quantized or not; adapters as PEFT writes them."""
