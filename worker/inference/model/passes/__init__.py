"""The forward passes of the runner besides decode steps: reading prompts, and verifying drafts."""
