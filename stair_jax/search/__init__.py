"""Trees of reasoning steps: grown by Safety-Informed MCTS, turned into training rows."""
