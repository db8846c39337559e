"""A job over several devices: its launcher, its processes (ranks), what they do together."""
