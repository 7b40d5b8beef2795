"""Tests of one tunnel's parts."""
