"""Fault cases: each injects one fault, with a deadline and a measured figure; ``make faults`` runs all at full size."""
