"""Export of a trained run in formats that other programs read."""
