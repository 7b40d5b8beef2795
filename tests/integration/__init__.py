"""Tests of the command from outside: processes, sockets, signals."""
