"""The training loop, its step, optimizer, checkpoints and recovery."""
