"""Use trained models and exported files: evaluate, predict, generate, inspect."""
