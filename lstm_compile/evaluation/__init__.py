"""The quality of a model: predictions, baselines, backtests, perplexity and verdicts."""
