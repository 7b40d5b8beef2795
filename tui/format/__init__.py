"""Data as lines of styled text: pure functions of the model and a width."""
