"""Many runs: grids, plans, execution."""
