"""Accuracy of tasks as a function of scale."""
