"""What a run is: checked dataclasses, their sections, and overrides."""
