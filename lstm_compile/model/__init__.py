"""The model round the recurrence, as pure functions of a flat dict, and the file that holds it."""
