"""`lstm-compile export`."""
