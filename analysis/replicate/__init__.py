"""Published numbers recomputed from public tables, one module a study. `scaling replicate` runs them."""
