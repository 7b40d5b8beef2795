"""Helpers that all tests share: waiting, ports, sizes of a run, sockets, strategies and parts of an engine."""
