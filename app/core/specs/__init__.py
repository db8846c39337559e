"""The vocabulary of jobs and exports: their specs, their states, and the syntax of chat templates."""
