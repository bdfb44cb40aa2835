"""The trainers: log-probabilities, losses, one optimiser step, the loop around it."""
