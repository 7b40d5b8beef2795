"""A process among others: its signals, its place for a socket, its log, its service manager."""
