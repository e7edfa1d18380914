"""The same pipeline on Kubeflow Pipelines. Nothing of it is here yet: see docs/architecture.md."""
