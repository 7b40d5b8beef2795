"""The dashboard: a screen on a running daemon, and never more than its client."""
