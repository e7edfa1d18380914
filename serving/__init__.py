"""The base path and everything that reads or writes it. Imports neither TFX nor Beam."""
