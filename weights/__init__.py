"""Models small enough to ship, and how each was made."""
