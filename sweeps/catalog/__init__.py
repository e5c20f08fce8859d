"""Named sweeps, ready to run."""
