"""Which model families work: tiny random models go through preflight, training, verification and serving."""
