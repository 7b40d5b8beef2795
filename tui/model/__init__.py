"""What the dashboard knows, as immutable data: no I/O, no screen."""
