"""An LSTM over padded sequences: the function, its backends, and the operator in traced code."""
