"""Tests: unit tests for each package, integration tests, fault cases, and the soak, benchmark and fuzz commands."""
