"""Which of several engines a request goes to."""
