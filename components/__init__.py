"""What TFX does not have or does badly: ingest, gates, trainer, publisher.

Importing this package decides once, before TensorFlow is loaded, that `tf.keras` is Keras 2
(`tf_keras`), in every process that runs code of ours, Beam workers included: TensorFlow
Transform's layers are Keras 2 models.
"""

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
