"""The self-contained page of a sweep."""
