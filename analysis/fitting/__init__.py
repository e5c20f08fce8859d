"""Fits of laws: optimisers, objectives, intervals, identifiability."""
