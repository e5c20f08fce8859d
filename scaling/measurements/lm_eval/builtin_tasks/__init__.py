"""Three small tasks for lm-evaluation-harness, with their data; they work without a network."""
