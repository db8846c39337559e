"""Optimizations: the same mathematics as PEFT, TRL and transformers, faster; each is tried when a job starts."""
