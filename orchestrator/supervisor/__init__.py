"""What runs: the tunnels, whoever keeps them running, and the one place for commands."""
