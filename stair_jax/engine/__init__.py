"""The generation engine: requests in, tokens out."""
