"""Running the cells of a plan: claims, attempts, progress, and fleets of workers on clusters."""
