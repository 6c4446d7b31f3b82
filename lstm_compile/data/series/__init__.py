"""Series at equal steps: the clock, the grid of steps, and windows of them."""
