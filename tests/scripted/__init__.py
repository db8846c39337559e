"""Processes of the service with scripted behaviour, for tests of their supervisors."""
