"""The decoder: weights, attention, loss, parametrization, sharding."""
