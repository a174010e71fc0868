"""Downloads over HTTP, tried again where that may help."""

import logging
from typing import TYPE_CHECKING

from ray_wsss.data.images import ImageError
from ray_wsss.version import __version__

if TYPE_CHECKING:
    from requests import Session
    from urllib3.util import Retry

_RETRIES = 5
_FIRST_WAIT_S = 0.5
"""Waiting time before the second retry, in seconds; it doubles with each."""
_LONGEST_WAIT_S = 60
_TIMEOUT_S = (10, 60)
"""Longest waits for a connection and for bytes, in seconds."""
_PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Status codes of servers that are busy or restarting."""


class WebClient:
    """Downloads files. Safe for several threads; connections are kept for further files.

    Busy servers, lost connections and cut answers are tried again, up to 5 times with growing waits.

    Args:
        connections: most connections to one host at a time.
    """

    def __init__(self, connections: int) -> None:
        self.connections = connections
        self._session: Session | None = None

    def get(self, uri: str) -> bytes:
        """Content behind a URI. Raises ImageError with the reason if it can't be downloaded."""
        import requests

        tries = 1 + _RETRIES
        for attempt in range(tries):
            try:
                answer = self._open().get(uri, timeout=_TIMEOUT_S)
            except requests.exceptions.ChunkedEncodingError as error:
                # The answer ended early, which urllib3 doesn't try again once it has the header.
                if attempt + 1 == tries:
                    raise ImageError(f"can't be downloaded: the answer ends early ({tries} tries)") from error
            except (requests.RequestException, ValueError) as error:
                raise ImageError(f"can't be downloaded: {_reason(error)}") from error
            else:
                if answer.status_code != requests.codes.ok:
                    status = f"{answer.status_code} {answer.reason}".strip()
                    raise ImageError(f"can't be downloaded: the server answers {status}")
                return answer.content
        raise AssertionError("the last try returns or raises")

    def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            self._session.close()

    def _open(self) -> "Session":
        if self._session is None:
            self._session = _session(self.connections)
        return self._session


def _session(connections: int) -> "Session":
    import requests
    from requests.adapters import HTTPAdapter

    # Its warnings of every retry name the whole URI, which may be signed.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    session = requests.Session()
    session.headers["User-Agent"] = f"ray-wsss/{__version__}"
    adapter = HTTPAdapter(pool_maxsize=connections, pool_block=True, max_retries=_retry())
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapter)
    return session


def _retry() -> "Retry":
    from urllib3.util import Retry

    class Patient(Retry):
        """Waits as long as a server asks, but no longer than a minute."""

        def get_retry_after(self, response: object) -> float | None:
            wait_s = super().get_retry_after(response)  # pyright: ignore[reportArgumentType]
            return None if wait_s is None else min(wait_s, _LONGEST_WAIT_S)

    return Patient(
        total=_RETRIES,
        backoff_factor=_FIRST_WAIT_S,
        backoff_max=_LONGEST_WAIT_S,
        status_forcelist=_PASSING,
        raise_on_status=False,
    )


def _reason(error: Exception) -> str:
    """The reason without the URI, whose query may be a signature."""
    import requests

    kinds = (
        (requests.exceptions.SSLError, "its certificate is not trusted"),
        (requests.exceptions.ProxyError, "the proxy can't be used"),
        (requests.exceptions.Timeout, "the server does not answer in time"),
        (requests.exceptions.TooManyRedirects, "it redirects too often"),
        (requests.exceptions.ConnectionError, "the server can't be reached"),
    )
    known = next((reason for kind, reason in kinds if isinstance(error, kind)), None)
    return known or f"the address can't be used ({type(error).__name__})"
