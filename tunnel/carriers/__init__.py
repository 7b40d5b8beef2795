"""How data connections travel between the two ends."""
