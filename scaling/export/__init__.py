"""A trained run in formats that other programs read."""
