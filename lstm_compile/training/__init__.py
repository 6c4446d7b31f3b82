"""Training: its settings (`config`), one step, the loop, a run with its folder."""
