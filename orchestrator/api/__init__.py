"""The local API: HTTP, JSON and server-sent events, for commands, dashboard and scripts."""
