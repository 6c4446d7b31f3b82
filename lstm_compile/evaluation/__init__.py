"""How good a model is: predictions, baselines, backtests, perplexity and verdicts."""
