"""Running the cells of a plan: claims, attempts, progress, fleets of workers."""
