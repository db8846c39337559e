"""LoRA adapters of the engine: read from the store, and held in slots on the device."""
