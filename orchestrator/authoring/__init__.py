"""Writes files of tunnels: a first pair of files, and translations of the files of other programs."""
