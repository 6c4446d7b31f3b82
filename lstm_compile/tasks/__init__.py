"""What one task does differently from another: its loss, its metrics, its answers."""
