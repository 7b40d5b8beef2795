"""A long run of tunnels under load and faults that compares their resources with a baseline afterwards."""
