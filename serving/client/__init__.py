"""A client of model servers, TensorFlow Serving or the embedded one, over gRPC or REST.

    from graftline.serving.client.client import Client

    with Client("grpc://localhost:8500", "flowers") as client:
        [prediction] = client.predict([Path("rose.jpg").read_bytes()])

It loads neither TensorFlow nor tensorflow-serving-api, so it starts at once.
"""
