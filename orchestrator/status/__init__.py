"""How a daemon and its tunnels are: the one typed definition of it, and the store that knows what changed since when.

Standard library only, so that a worker process can import it.
"""
