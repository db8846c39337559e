"""The vocabulary of jobs and exports: what may be asked for, the states they are in, and template syntax."""
