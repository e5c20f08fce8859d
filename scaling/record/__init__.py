"""What a run leaves on disk: its folder, evaluations, trackers."""
