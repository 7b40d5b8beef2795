"""The file: from YAML text to a Manifest, every fault with its place, and from one Manifest to the next."""
