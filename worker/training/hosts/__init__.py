"""A job over several hosts: Ray Train places its ranks, lets them meet, and notices when one dies."""
