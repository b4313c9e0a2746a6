"""Methods by name: service, request and response of `ctx.call`, from descriptors that are imported. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import Message

from engine import values
from engine.errors import EncodeError, InvalidNameError
from mesh import subjects


@dataclass(frozen=True, slots=True)
class FoundMethod:
    """A method with what is needed to call it. `request_class` is None where no descriptor tells."""

    service: str
    name: str
    request_class: type[Message] | None
    response_type: str
    decode: Callable[[bytes], Any]

    def encode(self, request: Any) -> values.Payload:
        """A request's bytes: of a message, of a dict in ProtoJSON, or bytes as they are. Raises EncodeError."""
        what = f"the request of {self.service}.{self.name}"
        if isinstance(request, dict) and self.request_class is not None:
            try:
                request = json_format.ParseDict(request, self.request_class())
            except json_format.ParseError as error:
                raise EncodeError(what, "dict", f"no {values.type_name(self.request_class)}: {error}") from error
        payload = values.encode(request, what)
        if payload.type == values.JSON:
            raise EncodeError(what, type(request).__qualname__, "give a protobuf message, or bytes of one")
        return payload


def find_method(service: str, method: str, request: Any, response_type: Any = None) -> FoundMethod:
    """The method that a call by name means. The service's name may be short where the request's file defines it.

    Raises InvalidNameError where no imported descriptor defines it, and says what to give instead.
    """
    subjects.check_service(service)
    subjects.check_method(method)
    descriptor = _find_service(service, request)
    if descriptor is None:
        if response_type is None or "." not in service:
            rule = "no .proto imported near the request defines it: give package.Service and response_type"
            raise InvalidNameError("service", service, rule)
        return FoundMethod(service, method, None, _type_name(response_type), _decoder(response_type))
    found = descriptor.methods_by_name.get(method)
    if found is None:
        known = ", ".join(sorted(descriptor.methods_by_name))
        raise InvalidNameError("method", method, f"{descriptor.full_name} has {known}")
    response = response_type or message_factory.GetMessageClass(found.output_type)
    request_class = message_factory.GetMessageClass(found.input_type)
    return FoundMethod(descriptor.full_name, method, request_class, _type_name(response), _decoder(response))


def _find_service(service: str, request: Any) -> Any:
    candidates = [service]
    if isinstance(request, Message):
        file = request.DESCRIPTOR.file
        if service in file.services_by_name:
            return file.services_by_name[service]
        candidates.append(f"{file.package}.{service}")
    pool = descriptor_pool.Default()
    for name in candidates:
        try:
            return pool.FindServiceByName(name)
        except KeyError:
            continue
    return None


def _type_name(response: Any) -> str:
    return values.message_type(response) if isinstance(response, type) and issubclass(response, Message) else ""


def _decoder(response: Any) -> Callable[[bytes], Any]:
    if hasattr(response, "FromString"):
        return response.FromString  # type: ignore[no-any-return]  # a message class
    if hasattr(response, "parse"):  # betterproto
        return lambda data: response().parse(data)
    if response is None or response is bytes:
        return bytes
    return lambda data: values.decode(data, values.JSON, response, "the reply")
