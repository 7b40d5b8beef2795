"""One tunnel: from a URL to a running engine. Knows no configuration file, no screen and no broker."""
