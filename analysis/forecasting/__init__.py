"""Choosing a law by back-test, prediction intervals, saved and sealed forecasts."""
