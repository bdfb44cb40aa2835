"""Judges of responses: who says how good an answer is."""
