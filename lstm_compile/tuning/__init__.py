"""Search for settings: a space of them, a study that processes share, a report."""
