"""The few requests the tool itself makes to an API server, with a client certificate."""

import http.client
import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from readapt_cluster.certificates import Pair


@dataclass(frozen=True, slots=True)
class Api:
    """An HTTPS server, who signed it, and as whom to speak to it (None: anonymous)."""

    url: str
    ca_file: Path
    client: Pair | None = None

    def answers(self, path: str) -> bool:
        """Whether GET `path` returns 200 within two seconds."""
        try:
            self._request("GET", path, None, 2.0)
        except (OSError, http.client.HTTPException):
            return False
        return True

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at `path`. Raises OSError (urllib's HTTPError for a status that is not 2xx)."""
        return dict(json.loads(self._request("GET", path, None, 10.0)))

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Create an object; the server's answer. Raises like `get`."""
        return dict(json.loads(self._request("POST", path, body, 10.0)))

    def _request(self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float) -> bytes:
        context = ssl.create_default_context(cafile=str(self.ca_file))
        if self.client is not None:
            context.load_cert_chain(self.client.certificate, self.client.key)
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if data else {}
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        # A proxy of the environment must never see a request to the cluster.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(request, timeout=timeout_s) as response:
            return bytes(response.read())


def is_conflict(error: OSError) -> bool:
    """Whether the server refused to create an object because it exists."""
    return isinstance(error, urllib.error.HTTPError) and error.code == http.client.CONFLICT
