"""Training: its settings, one step, the loop, and a run with its folder."""
