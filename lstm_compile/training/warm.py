"""The old name of the module `warm_start`, for programs that import `initial_params` from it."""

from lstm_compile.training.warm_start import initial_params as initial_params
