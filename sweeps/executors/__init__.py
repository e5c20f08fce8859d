"""Where runs go: this machine, a cluster."""
