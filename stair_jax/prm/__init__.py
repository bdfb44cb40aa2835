"""Reading a reward model."""
