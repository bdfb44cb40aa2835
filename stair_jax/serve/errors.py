"""Errors as OpenAI's clients read them."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.responses import JSONResponse

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_LONGEST = 5  # complaints that one message holds


class ApiError(Exception):
    """What a client did wrong, or what is wrong here.

    Args:
      status: of HTTP.
      message: for a person, in one line.
      param: the option that it is about.
      code: for a program.
      headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """What the answer holds."""
        usual = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": str(self),
                "type": _TYPES.get(self.status, usual),
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body, self.status, self.headers)


def of_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Returns what to say of a body that is not what it should be.

    Args:
      errors: of pydantic; what the client sent is not repeated.
    """
    said, first = [], None
    for error in errors[:_LONGEST]:
        place = [part for part in error["loc"] if part != "body"]
        name = ".".join(map(str, place))
        first = first or (str(place[0]) if place else None)
        if error["type"] == "extra_forbidden":
            said.append(f"{name}: unknown here, it would be ignored")
        else:
            said.append(f"{name}: {error['msg']}" if name else str(error["msg"]))
    if (more := len(errors) - _LONGEST) > 0:
        said.append(f"and {more} more")
    unknown = any(error["type"] == "extra_forbidden" for error in errors)
    code = "unknown_parameter" if unknown else "invalid_value"
    return ApiError(400, "; ".join(said), param=first, code=code)
