"""How any kind of work (a job, an export, a fetch) is claimed, held, and ended."""
