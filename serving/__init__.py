"""The base path and everything that reads or writes it. Imports neither TFX nor Beam."""

import os

# TensorFlow loads a Keras with itself, which nothing here uses: Keras 2 takes two seconds less than
# Keras 3, and is that of the other packages.
os.environ["TF_USE_LEGACY_KERAS"] = "1"
