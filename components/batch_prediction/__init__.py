"""Batch prediction: any number of images through a published version, on any Beam runner."""
