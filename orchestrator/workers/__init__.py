"""Engines in worker processes, so that more than one core is used."""
