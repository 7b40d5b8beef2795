"""What happens to the bytes between a visitor and a target."""
