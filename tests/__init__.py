"""Tests, mirroring the packages; integration beside them."""
