"""The wire protocol without I/O: frames, handshake. See PROTOCOL.md."""
