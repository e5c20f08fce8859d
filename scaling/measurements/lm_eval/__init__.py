"""Measurements from the tasks of lm-evaluation-harness."""
