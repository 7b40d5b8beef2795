"""Hosts on an MQTT broker: what a host publishes and accepts, and how a reader sees all hosts of the broker."""
