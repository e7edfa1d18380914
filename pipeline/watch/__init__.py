"""Training at every data drop: watches for complete drops, takes each in, trains on it."""
