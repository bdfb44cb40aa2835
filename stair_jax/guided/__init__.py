"""Test-time search under a reward model."""
