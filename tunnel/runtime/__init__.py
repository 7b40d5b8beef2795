"""Sockets and time: reactor, listeners, TLS sessions, splice pipes, descriptor budget, back-off."""
