"""The tuner: which values of the trainer's configuration do best on the eval split."""
