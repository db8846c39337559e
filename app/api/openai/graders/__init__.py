"""/v1/fine_tuning/alpha/graders: graders tried on one answer."""
