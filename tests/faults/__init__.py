"""Faults made for real, each with a deadline and something to be seen; ``make faults`` runs them at full size."""
