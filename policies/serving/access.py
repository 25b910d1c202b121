"""Who may talk to a server: where it listens, which token, TLS, which web pages.

Loopback needs nothing. Any other address needs a token, and TLS unless the user says that the network is
trusted. Tokens come from an environment variable or a file, are compared in constant time, and appear in no
message. `policies.serving.server` checks every connection once.
"""

import hmac
import ipaddress
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from vla.errors import VLAError

MIN_TOKEN_CHARACTERS = 16
SCHEMES = ("api-key", "bearer")  # of the Authorization header; openpi clients send Api-Key


class AccessError(VLAError):
    """The server would listen in a way that lets strangers in; the message says what to add."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Why a connection is not accepted: the HTTP status, and one word for log and metrics."""

    status: HTTPStatus
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """Where a server listens and whom it lets in; checked when it is made.

    Raises:
        AccessError: the address is not loopback and there is no token, or neither TLS nor `insecure_lan`.
    """

    host: str = "127.0.0.1"
    port: int = 8000  # 0 lets the system choose
    token: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None
    insecure_lan: bool = False  # whether plain text is accepted beyond loopback
    allowed_origins: tuple[str, ...] = ()  # web pages that may connect; programs send no Origin

    def __post_init__(self) -> None:
        token = self.token
        if token is not None and not (
            len(token) >= MIN_TOKEN_CHARACTERS and token.isascii() and token.isprintable()
        ):
            raise AccessError(
                f"the token is no line of ASCII text of at least {MIN_TOKEN_CHARACTERS} characters"
            )
        if is_loopback(self.host):
            return
        if self.token is None:
            raise AccessError(
                f"host {self.host!r} is reachable from other machines, and there is no token: set one in the "
                f"environment variable of token_env or in token_file, or listen on 127.0.0.1"
            )
        if self.tls is None and not self.insecure_lan:
            raise AccessError(
                f"host {self.host!r} is reachable from other machines, and there is no TLS: give tls_cert "
                f"and tls_key, or say insecure_lan=true on a network where everyone may read along"
            )

    @property
    def scheme(self) -> str:
        """The scheme of the server's address."""
        return "ws" if self.tls is None else "wss"

    def check_origin(self, headers: Mapping[str, str]) -> Refusal | None:
        """Refuse web pages: a browser always sends Origin, and reaches servers on loopback, too."""
        origin = _single(headers, "Origin")
        if origin is None or origin in self.allowed_origins:
            return None
        return Refusal(status=HTTPStatus.FORBIDDEN, reason="origin")

    def check_token(self, headers: Mapping[str, str]) -> Refusal | None:
        """Refuse a missing or wrong token, if there is one to be known."""
        if self.token is None:
            return None
        scheme, _, given = (_single(headers, "Authorization") or "").partition(" ")
        known_scheme = scheme.lower() in SCHEMES
        same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self.token.encode())
        return None if known_scheme and same else Refusal(status=HTTPStatus.UNAUTHORIZED, reason="token")


def _single(headers: Mapping[str, str], name: str) -> str | None:
    """Return a header's value, or None; one that is given twice counts as an empty value."""
    try:
        return headers.get(name)
    except LookupError:  # websockets' MultipleValuesError
        return ""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(*, environment_variable: str | None, file: Path | None) -> str | None:
    """Return the token from the environment or else from a file; None where neither is given.

    Raises:
        AccessError: the file is empty.
        OSError: the file cannot be read.
    """
    if environment_variable and (token := os.environ.get(environment_variable, "").strip()):
        return token
    if file is None:
        return None
    token = file.read_text(encoding="utf-8").strip()
    if not token:
        raise AccessError(f"the token file {file} is empty")
    return token


def server_tls(*, certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Return the TLS context of a server; None where neither file is given.

    Raises:
        AccessError: only one of the two is given, a file is missing, they do not fit each other, or the key
            asks for a passphrase.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise AccessError("TLS needs both tls_cert and tls_key")
    missing = [str(path) for path in (certificate, key) if not path.is_file()]
    if missing:
        raise AccessError(f"TLS: there is no file {', '.join(missing)}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2

    def refuse_passphrase() -> str:
        raise AccessError(
            f"TLS: the key {key} asks for a passphrase; store it without one (openssl pkey -in {key} -out "
            "plain.key), readable by the server's user alone"
        )

    try:
        context.load_cert_chain(certificate, key, password=refuse_passphrase)
    except ssl.SSLError as error:
        raise AccessError(
            f"TLS: {certificate} and {key} are no certificate with its key ({error.reason})"
        ) from error
    return context
