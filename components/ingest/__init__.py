"""Drops: from labelled images as a user has them to the checked, sharded TFRecords of one span."""
