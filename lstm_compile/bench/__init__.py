"""What a forward and a training step cost, by backend, beside nn.LSTM on the same weights."""
