"""SLURM, Ray, hosts that share a disk, and manifests for TPU slices."""
