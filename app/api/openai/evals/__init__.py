"""/v1/evals: evals, their runs and output items, on the tables of native evaluations."""
