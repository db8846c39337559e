"""Child processes: how they are started, watched, prewarmed, and what they report. Imports no torch."""
