"""Whatever strangers, files and brokers say, guided towards every branch of what reads it."""
