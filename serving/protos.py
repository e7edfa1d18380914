"""Messages of protocol buffers from a table of their fields, where no package brings them lightly.

tensorflow-serving-api and TensorFlow have most of them, at the price of loading TensorFlow. What
counts on the wire are numbers and types: an enum is an int32, a map a list of key and value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    wrappers_pb2,
)

# message: {field: (number, type)}; `repeated` stands before the type. Other messages by name.
Table = Mapping[str, Mapping[str, tuple[int, str]]]

_TYPES = {
    name: getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{name.upper()}")
    for name in ("string", "bytes", "bool", "float", "int32", "int64", "uint64")
}


def declare(package: str, messages: Table) -> dict[str, Any]:
    """Makes the classes of messages.

    Args:
        package: to which they belong.
        messages: their fields; a type that is neither a scalar nor in the table is one of
            `google/protobuf/wrappers.proto`.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package.replace('.', '/')}.proto",
        package=package,
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    for message_name, fields in messages.items():
        message = file.message_type.add(name=message_name)
        for name, (number, kind) in fields.items():
            field = message.field.add(name=name, number=number)
            repeated = kind.startswith("repeated ")
            kind = kind.removeprefix("repeated ")
            field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            field.type = _TYPES.get(kind, field.TYPE_MESSAGE)
            if kind in messages:
                field.type_name = f".{package}.{kind}"
            elif kind not in _TYPES:
                field.type_name = f".google.protobuf.{kind}"
    # A pool of its own: the name of no other library's message can clash.
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return {name: _class(pool, f"{package}.{name}") for name in messages}


def _class(pool: descriptor_pool.DescriptorPool, full_name: str) -> Any:
    descriptor = pool.FindMessageTypeByName(full_name)
    # protobuf 3.20 knows only the factory, 4.22 and newer prefer the function, 5 only has it.
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(pool=pool).GetPrototype(descriptor)
