"""The dashboard in a browser, for whoever has the token."""

from __future__ import annotations

import hmac
import logging
import socket
from typing import TYPE_CHECKING, Final

from aiohttp import web
from textual_serve.server import Server

from orchestrator.process.process import say

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_COOKIE: Final = "nodepass-orch"


class _TokenServer(Server):
    """Textual's server, closed to those who do not know the token."""

    def __init__(self, command: str, host: str, port: int, token: str) -> None:
        shown = f"[{host}]" if ":" in host else host
        super().__init__(command, host, port, title="nodepass-orch", public_url=f"http://{shown}:{port}")
        self._token = token

    def initialize_logging(self) -> None:
        """Quiet: only what is wrong is worth a line."""
        logging.basicConfig(level=logging.WARNING, format="nodepass-orch: %(message)s")

    async def on_startup(self, app: web.Application) -> None:
        """Say where to look."""
        say(f"open {self.public_url}/?token={self._token} in a browser; Ctrl-C ends this, the tunnels run on")

    async def _make_app(self) -> web.Application:
        app = await super()._make_app()
        app.middlewares.append(guard(self._token))
        return app


def guard(token: str) -> Callable[..., Awaitable[web.StreamResponse]]:
    """Lets nobody in who has not shown the token once; from then on a cookie stands for it."""

    @web.middleware
    async def check(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if _is(request.query.get("token"), token):
            answer = web.Response(status=302, headers={"Location": request.path})  # away from the address line with it
            answer.set_cookie(_COOKIE, token, httponly=True, samesite="Strict")
            return answer
        if not _is(request.cookies.get(_COOKIE), token):
            return web.Response(status=403, text="Open the address with the token that the command printed.\n")
        return await handler(request)

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
