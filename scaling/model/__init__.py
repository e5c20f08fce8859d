"""The decoder: attention, loss, parametrization, sharding."""
