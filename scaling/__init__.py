"""One run: configuration, model, data, training, record."""
