"""Forecasting: windows of series, the model round the LSTM stack, baselines and backtests."""
