"""Fuzzing of everything that reads untrusted input: frames, handshakes, prefaces, URLs, files, MQTT messages."""
