"""`python -m lstm_compile` is `lstm-compile`."""

from lstm_compile.cli import main

main()
