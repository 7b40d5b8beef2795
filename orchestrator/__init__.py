"""Many tunnels from one file: configuration, supervisor, local API, command line."""
