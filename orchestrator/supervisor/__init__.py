"""The tunnels that run: their runners, reloads, events, and the service for status and commands."""
