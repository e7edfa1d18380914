"""A program that takes TensorFlow Serving's flags and serves `a` with 0.25 and `b` with 0.75.

`python odd_model_server.py HOW FOLDER FLAGS…` writes its process id into FOLDER. HOW is what is
odd: `sound`, `silent` (never serves), `wrong-grpc`, `wrong-rest`, `renamed` (other classes), `nan`,
`choosy` (decodes nothing over gRPC), `slow`, `dies` or `hangs` (both with the second request).
"""

from __future__ import annotations

import http.server
import itertools
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from graftline.serving.prediction_messages import MESSAGES
from graftline.serving.signature import INPUT, OUTPUTS, SIGNATURE

SLOW = 0.2
_requests = itertools.count(1)


def classify(how: str, protocol: str, count: int) -> list[tuple[list[str], list[float]]]:
    """Classes and scores of so many images."""
    number = next(_requests)
    if how == "dies" and number == 2:
        print("out of luck", flush=True)
        os._exit(7)
    if how == "hangs" and number == 2:
        time.sleep(600)
    if how == "slow":
        time.sleep(SLOW)
    classes, scores = ["a", "b"], [0.25, 0.75]
    if how == f"wrong-{protocol}":
        scores = [0.2501, 0.7499]
    if how == "renamed":
        classes = ["a", "c"]
    if how == "nan":
        scores = [float("nan"), 0.75]
    return [(classes, scores)] * count


class Grpc(grpc.GenericRpcHandler):
    def __init__(self, how: str):
        self._how = how

    def service(self, details: Any) -> Any:
        name = details.method.rpartition("/")[2]
        kind = {"Predict": "Predict", "GetModelMetadata": "Metadata"}[name]
        return grpc.unary_unary_rpc_method_handler(
            getattr(self, kind.lower()),
            request_deserializer=MESSAGES[f"{kind}Request"].FromString,
            response_serializer=MESSAGES[f"{kind}Response"].SerializeToString,
        )

    def metadata(self, request: Any, context: Any) -> Any:
        signatures = MESSAGES["Signatures"]()
        signature = signatures.signature_def.add(key=SIGNATURE).value
        signature.inputs.add(key=INPUT)
        for name in OUTPUTS:
            signature.outputs.add(key=name)
        response = MESSAGES["MetadataResponse"](model_spec=request.model_spec)
        response.metadata.add(key="signature_def").value.value = signatures.SerializeToString()
        return response

    def predict(self, request: Any, context: Any) -> Any:
        if self._how == "choosy":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not to my taste")
        rows = classify(self._how, "grpc", len(request.inputs[0].value.string_val))
        response = MESSAGES["PredictResponse"](model_spec=request.model_spec)
        names = response.outputs.add(key="classes").value
        scores = response.outputs.add(key="scores").value
        for row in rows:
            names.string_val.extend(name.encode() for name in row[0])
            scores.float_val.extend(row[1])
        return response


def rest_handler(how: str) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            version = self.path.split("/")[-2]
            signature = {"inputs": {INPUT: {}}, "outputs": {name: {} for name in OUTPUTS}}
            signatures = {"signature_def": {"signature_def": {SIGNATURE: signature}}}
            self.answer({"model_spec": {"version": version}, "metadata": signatures})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            rows = classify(how, "rest", len(json.loads(body)["instances"]))
            self.answer({"predictions": [{"classes": c, "scores": s} for c, s in rows]})

        def answer(self, document: Any) -> None:
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def main(how: str, folder: str, *arguments: str) -> None:
    """Serves until it is killed."""
    (Path(folder) / f"{os.getpid()}.pid").touch()
    flags = dict(argument.lstrip("-").split("=", 1) for argument in arguments)
    assert (Path(flags["model_base_path"]) / "1").is_dir()
    if how == "silent":
        time.sleep(600)
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Grpc(how),))
    server.add_insecure_port(f"127.0.0.1:{flags['port']}")
    server.start()
    address = ("127.0.0.1", int(flags["rest_api_port"]))
    http.server.ThreadingHTTPServer(address, rest_handler(how)).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
