"""Optimizations: the mathematics of PEFT, TRL and transformers, faster; each is tried when a job starts."""
