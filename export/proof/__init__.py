"""Check that a file and its model give the same answers in every runtime."""
