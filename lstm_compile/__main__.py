"""`python -m lstm_compile` is `lstm-compile`."""

from lstm_compile.cli import main

if __name__ == "__main__":  # not in a process that `bench` starts
    main()
