"""The benchmark: this tunnel beside a direct connection, a two-hop HAProxy chain and whoever else is named."""
