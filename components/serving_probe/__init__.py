"""The serving probe: before a candidate is published, a model server of its own has to serve it."""
