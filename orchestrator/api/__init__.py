"""The local API: HTTP for commands, dashboard and curl."""
