"""What the HTTP stubs of the tests share."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import Any


class JsonHandler(BaseHTTPRequestHandler):
    """Answers in JSON, and logs nothing."""

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, content: Any, code: int = 200) -> None:
        """Send ``content`` with the HTTP status ``code``."""
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
