"""Teacher text for stage 1: structured reasoning from an endpoint, from a model, and from rules."""
