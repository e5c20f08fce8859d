"""Named sweeps, ready to run: `scaling sweep plan NAME` takes the name of a module here that defines `sweep()`."""
