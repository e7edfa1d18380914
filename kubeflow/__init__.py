"""The same pipeline without anyone at the keyboard: what Kubeflow needs of it."""
