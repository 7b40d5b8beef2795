"""Tests of the command from outside: processes, sockets, process signals."""
