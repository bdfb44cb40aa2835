"""What goes to disk and comes back: checkpoints, Hugging Face folders, rows, metrics."""
