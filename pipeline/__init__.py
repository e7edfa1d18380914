"""The definition of the pipeline: configuration, plan, nodes, local runner, command line."""

import graftline.components as _legacy_keras  # noqa: F401  # decides Keras 2 before TensorFlow loads
