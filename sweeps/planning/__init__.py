"""The plan of a sweep, and estimates of its wall time and cost."""
