"""The name that `warm_start` had first; programs that import `initial_params` from here go on."""

from lstm_compile.training.warm_start import initial_params as initial_params
