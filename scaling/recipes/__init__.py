"""Recipes that derive a whole run config from one number."""
