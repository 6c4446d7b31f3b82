"""Training: what it takes (`config`), one step (`step`), the loop (`loop`), a run folder (`run`)."""
