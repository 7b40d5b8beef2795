"""The dashboard in a browser, for whoever has the token."""

from __future__ import annotations

import hashlib
import hmac
import logging
import socket
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from textual_serve.server import Server

from orchestrator.process.process import say

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_POLICY: Final = {
    # nothing is fetched from elsewhere, not even a font, and nobody elsewhere learns of the page
    "Content-Security-Policy": "default-src 'self' data: blob: ws: wss: 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


class _TokenServer(Server):
    """Textual's server, closed to those who do not know the token."""

    def __init__(self, command: str, host: str, port: int, token: str) -> None:
        shown = f"[{host}]" if ":" in host else host
        super().__init__(command, host, port, title="nodepass-orch", public_url=f"http://{shown}:{port}")
        self._token = token

    def initialize_logging(self) -> None:
        """Quiet: only what is wrong is worth a line."""
        logging.basicConfig(level=logging.WARNING, format="nodepass-orch: %(message)s")

    async def handle_index(self, request: web.Request) -> Any:  # noqa: ANN401  the page, or what it is made from
        """The page; it finds the rest where it was found itself: by another name, or through a forwarded port."""
        self.public_url = f"{request.scheme}://{request.host}"
        return await super().handle_index(request)

    async def on_startup(self, app: web.Application) -> None:
        """Say where to look."""
        say(f"open {self.public_url}/?token={self._token} in a browser; Ctrl-C ends this, the tunnels run on")

    async def _make_app(self) -> web.Application:
        app = await super()._make_app()
        app.middlewares.append(guard(self._token))
        return app


def guard(token: str) -> Callable[..., Awaitable[web.StreamResponse]]:
    """Lets nobody in who has not shown the token once; from then on a cookie stands for it.

    Cookies know no ports, so each token has one of its own, and pages from another port are sent away.
    """
    cookie = f"nodepass-orch-{hashlib.sha256(token.encode()).hexdigest()[:8]}"

    @web.middleware
    async def check(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.host:
            return web.Response(status=403, text="Another page must not look into this one.\n")
        if _is(request.query.get("token"), token):
            answer = web.Response(status=302, headers={"Location": request.path})  # away from the address line with it
            answer.set_cookie(cookie, token, httponly=True, samesite="Strict")
            return answer
        if not _is(request.cookies.get(cookie), token):
            return web.Response(status=403, text="Open the address with the token that the command printed.\n")
        response = await handler(request)
        if not response.prepared:
            response.headers.update(_POLICY)
        return response

    return check


def _is(given: str | None, token: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode(), token.encode())


def serve(command: str, host: str, port: int, token: str) -> int:
    """Serve what ``command`` shows, until Ctrl-C. Port 0 takes any that is free."""
    if not port:
        with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            port = probe.getsockname()[1]
    _TokenServer(command, host, port, token).serve()
    return 0
