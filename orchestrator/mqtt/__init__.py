"""Many hosts over the broker that their people already run: what is said there, and who says and reads it."""
