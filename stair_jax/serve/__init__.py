"""A server that speaks OpenAI's protocol: models of a run, or of a Hugging Face folder."""
