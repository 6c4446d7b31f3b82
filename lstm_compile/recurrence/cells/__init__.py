"""The cells that ship: each a value of `lstm_compile.recurrence.any_cell.Cell`."""
