"""Drops: labelled images become the TFRecords of one span; what cannot be used is quarantined."""
