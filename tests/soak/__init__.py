"""A long run under load and faults together, and whether everything is as before once it is quiet."""
