"""An LSTM over padded sequences: the function, its backends, the operator that tracing meets."""
