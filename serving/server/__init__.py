"""The embedded model server: TensorFlow Serving's gRPC and REST interfaces, flags and behaviour.

For a laptop, the tests and the probe, where the real one cannot be installed. A client cannot tell
the two apart; where they differ on purpose is written down in docs/serving.md. References to
`tensorflow_serving/...` name the file of the real server that a rule was read in.
"""
