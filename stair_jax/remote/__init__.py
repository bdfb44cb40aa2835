"""OpenAI-compatible endpoints: the client and what it keeps."""
