"""Attacks on a model: what is done to a request so that a safe model might comply."""
