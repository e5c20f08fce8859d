"""The frozen plan of a sweep and its price."""
