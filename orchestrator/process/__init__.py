"""The process: its signal handlers, the path of its socket, its log, its service manager."""
