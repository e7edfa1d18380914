"""The client: classifies images with a model on a server, within a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

import msgspec
import tenacity

from graftline.serving.client import address
from graftline.serving.client.address import Tls
from graftline.serving.client.transport import Answer, Asked, Description, Transport
from graftline.serving.errors import UserError
from graftline.serving.server.status import Code, Failure

# Both servers take 64 MiB as they are; base64 makes them a third longer.
_BATCH_IMAGES = 32
_BATCH_BYTES = 32 << 20
# A classification changes nothing, so what broke off may be tried again. CANCELLED is what a server
# says that ends before it has answered; a client of ours cancels nothing.
_PASSING = (Code.UNAVAILABLE, Code.CANCELLED)
# What one image may bring upon its whole batch: it cannot be decoded, it is too large.
_OF_AN_IMAGE = (Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED)
_FIRST_WAIT = 0.1  # seconds
_LONGEST_WAIT = 2.0

T = TypeVar("T")


class ServerError(UserError):
    """There is no answer: the server cannot be reached, is no model server, lacks the model, …

    Attributes:
        code: what kind of failure, in gRPC's terms, also where REST is spoken.
    """

    def __init__(self, message: str, code: Code) -> None:
        super().__init__(message)
        self.code = code


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What is said about one image.

    Attributes:
        version: of the model that answered; 0 where there is no answer.
        classes: every class with its probability, the likeliest first.
        error: why there is no answer to this image, else empty.
    """

    version: int = 0
    classes: list[tuple[str, float]] = []
    error: str = ""


class Client:
    """Classifies images with one model. Not for several threads at once."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        version: int | None = None,
        label: str = "",
        seconds: float = 30.0,
        tls: Tls | None = None,
        retry: bool = True,
        on_retry: Callable[[str], None] = lambda said: None,
    ) -> None:
        """Connects when it is first asked.

        Args:
            url: `grpc://HOST:8500`, `grpcs://…`, `http://HOST:8501`, `https://…`, `unix:///SOCKET`.
            model: its name on the server.
            version: number of the version to ask; None: the server chooses.
            label: in its place, e.g. `stable`.
            seconds: in which a call has to end, tries, waits and all its batches together.
            tls: certificates, for `grpcs` and `https`.
            retry: try again, within `seconds`, when the server cannot be reached or is too busy.
            on_retry: told each time why.

        Raises:
            UserError: these do not go together.
        """
        if version is not None and label:
            raise UserError("A version is named by its number or by a label, not by both.")
        self._url = url
        self._asked = Asked(model=model, version=version, label=label)
        self._seconds = seconds
        self._retry = retry
        self._on_retry = on_retry
        self._transport = _connect(address.parse(url, tls or Tls()), tls or Tls())

    def predict(self, images: Sequence[bytes]) -> list[Prediction]:
        """Classifies encoded images; one that cannot be decoded does not fail the others.

        Raises:
            ServerError: there is no answer.
        """
        call = self._call()
        try:
            return [answer for batch in _batches(images) for answer in call.predict(batch)]
        except Failure as failure:
            raise self._explained(failure) from failure

    def describe(self) -> Description:
        """Asks which version answers, and makes sure that it classifies images.

        Raises:
            ServerError: there is no answer, or the model is not one of Graftline's.
        """
        try:
            return self._call().describe()
        except Failure as failure:
            raise self._explained(failure) from failure

    def close(self) -> None:
        """Closes connections."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self) -> _Call:
        return _Call(self._transport, self._asked, self._seconds, self._retry, self._on_retry)

    def _explained(self, failure: Failure) -> ServerError:
        code, said = failure.code, failure.message.rstrip(".")
        if code in _PASSING:
            tried = f"was tried for {self._seconds:g} s and " if self._retry else ""
            text = (
                f"The model server {self._url} {tried}cannot be reached: {said}. Is it running, "
                "and is this its address? `graftline serve` starts one."
            )
        elif code is Code.DEADLINE_EXCEEDED:
            text = (
                f"The model server {self._url} did not answer within {self._seconds:g} s. Give it "
                "more time, or look at its log."
            )
        elif code is Code.UNIMPLEMENTED:
            text = f"What answers at {self._url} is no model server: {said}."
        elif code is Code.FAILED_PRECONDITION:
            text = f"What the model server {self._url} serves cannot be asked: {said}."
        elif code is Code.NOT_FOUND or (self._asked.label and code is Code.INVALID_ARGUMENT):
            text = f"The model server {self._url} serves no {self._asked}: {said}."
        else:
            text = f"The model server {self._url} failed ({code.name}): {said}."
        return ServerError(text, code)


class _Call:
    """One call of a client: all of its requests, within one deadline."""

    def __init__(
        self,
        transport: Transport,
        asked: Asked,
        seconds: float,
        retry: bool,
        on_retry: Callable[[str], None],
    ) -> None:
        self._transport = transport
        self._asked = asked
        self._end = time.monotonic() + seconds
        self._retry = retry
        self._on_retry = on_retry
        self._described: Description | None = None

    def predict(self, images: Sequence[bytes]) -> list[Prediction]:
        """Classifies a batch; when it fails for one of its images, its halves in its place."""
        try:
            answer = self._ask(images)
        except Failure as failure:
            if failure.code not in _OF_AN_IMAGE:
                raise
            # The same code is that of a label or an input that the server does not know.
            self._described = self._described or self.describe()
            if len(images) == 1:
                return [Prediction(error=_fault(failure))]
            half = len(images) // 2
            return self.predict(images[:half]) + self.predict(images[half:])
        return [
            Prediction(version=answer.version or 0, classes=sorted(row, key=lambda pair: -pair[1]))
            for row in answer.images
        ]

    def describe(self) -> Description:
        """The version that answers.

        Raises:
            Failure: also where it does not classify images.
        """
        found = self._try(lambda seconds: self._transport.describe(self._asked, seconds))
        if not found.classifies_images:
            raise Failure(
                Code.FAILED_PRECONDITION,
                f"{self._asked} has no signature that takes encoded images: it was not trained by "
                "Graftline",
            )
        return found

    def _ask(self, images: Sequence[bytes]) -> Answer:
        if self._transport.tells_version or self._asked.version is not None:
            answer = self._classify(self._asked, images)
            return Answer(answer.version or self._asked.version, answer.images)
        # Asked by its number, it is known which version answers.
        self._described = self._described or self.describe()
        version = self._described.version
        try:
            answer = self._classify(Asked(model=self._asked.model, version=version), images)
        except Failure as failure:
            if failure.code is not Code.NOT_FOUND:
                raise
            # Another one may have taken its place meanwhile.
            self._described = self.describe()
            if self._described.version == version:
                raise
            return self._ask(images)
        return Answer(version, answer.images)

    def _classify(self, asked: Asked, images: Sequence[bytes]) -> Answer:
        return self._try(lambda seconds: self._transport.classify(asked, images, seconds))

    def _try(self, request: Callable[[float], T]) -> T:
        """Sends a request, again and again while that may help and there is time.

        Waits are random, from nothing to twice as long each time (Brooker, "Exponential Backoff
        And Jitter", 2015), so that the clients of a server that was away do not all come at once.
        """
        remaining = self._end - time.monotonic()
        if remaining <= 0:
            raise Failure(Code.DEADLINE_EXCEEDED, "no time is left")
        if not self._retry:
            return request(remaining)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_passing),
            wait=tenacity.wait_random_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT),
            stop=tenacity.stop_before_delay(remaining),
            before_sleep=self._tell,
            reraise=True,
        )
        return retrying(lambda: request(max(self._end - time.monotonic(), 1e-3)))

    def _tell(self, state: tenacity.RetryCallState) -> None:
        failure = state.outcome.exception() if state.outcome else None
        if isinstance(failure, Failure):
            self._on_retry(failure.message)


def _is_passing(error: BaseException) -> bool:
    return isinstance(error, Failure) and error.code in _PASSING


def _fault(failure: Failure) -> str:
    if failure.code is Code.RESOURCE_EXHAUSTED:
        return f"is too large for the server: {failure.message.rstrip('.')}."
    return "is no image that the model can decode."


def _batches(images: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Pieces of so many images and bytes that one request can hold; a large image goes alone."""
    first = size = 0
    for number, image in enumerate(images):
        if number > first and (number - first == _BATCH_IMAGES or size + len(image) > _BATCH_BYTES):
            yield images[first:number]
            first, size = number, 0
        size += len(image)
    if first < len(images):
        yield images[first:]


def _connect(found: address.Address, tls: Tls) -> Transport:
    if found.grpc:
        from graftline.serving.client.grpc_transport import GrpcTransport

        return GrpcTransport(found, tls)
    from graftline.serving.client.rest_transport import RestTransport

    return RestTransport(found, tls)
