"""What goes wrong with a request, in the API's error object and under its status codes."""

from dataclasses import dataclass, field

from cache.base.errors import InputError, NotEncodedError, SeeonceError


@dataclass(eq=False)
class ApiError(Exception):
    """An answer that is an error; ``param`` names the field that is wrong."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, object]:
        """The API's error object."""
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refused(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error of a request that the client has to change."""
    return ApiError(400, message, param, code)


def as_api_error(error: SeeonceError, param: str | None = None, where: str = "") -> ApiError:
    """Return what an error of ours is to a client: what it can change, or what only the server's user can."""
    message = f"{where}: {error}" if where else str(error)
    if isinstance(error, NotEncodedError):
        return ApiError(404, message, param, "not_encoded")
    return ApiError(400 if isinstance(error, InputError) else 500, message, param)
