"""The benchmark: this tunnel compared with a direct connection, two HAProxy hops and contenders from a file."""
