"""The stages of a run: wiring only."""
