"""Where the data comes from and the commands go: the API of one daemon, or a broker with many hosts."""
