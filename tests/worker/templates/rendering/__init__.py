"""Tests of the processes that render chat templates."""
