"""What a run would need of GPUs that are not there, as XLA compiles it."""
