"""The gateway: an HTTP service for what faces a network, in front of a model server.

It lets in who may come in, looks at an image's header before anyone decodes it, chooses between
`stable` and `canary`, asks the model server over gRPC, and says no quickly when there is too much
to do. Neither TensorFlow nor numpy is loaded: a process takes some 60 MB.
"""
