"""Parameters, FLOPs, memory and chips, counted from a config alone."""
