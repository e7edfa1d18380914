"""The signature of published models: encoded images in, classes with their scores out."""

SIGNATURE = "serving_default"
INPUT = "image_bytes"
OUTPUTS = ("classes", "scores")
