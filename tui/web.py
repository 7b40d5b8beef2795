"""The dashboard in a browser, protected by a token."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import signal
import socket
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from textual_serve.server import Server

from orchestrator.commands.common import EXIT_FAILED
from orchestrator.process.http_connections import ConnectionGuard, GuardedRunner, count_answers
from orchestrator.process.messages import print_message
from orchestrator.process.setup import handle_signal, run_event_loop
from tunnel.model.address import Address
from tunnel.runtime.sockets import NetError, describe_bind_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_SECURITY_HEADERS: Final = {
    # nothing is loaded from other hosts, not even a font, and other hosts do not learn the page's address
    "Content-Security-Policy": "default-src 'self' data: blob: ws: wss: 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}

_GRACE_S: Final = 1.0  # for open pages at the end


_PAGE_STYLE: Final = """<style>
/* the page never scrolls, and neither does the terminal: a scrollbar would cover its last columns */
html, body, .xterm-viewport { overflow: hidden !important; }
</style>
"""


class _TokenServer(Server):
    """Textual's server with a check of the token."""

    def __init__(self, command: str, host: str, port: int, token: str) -> None:
        shown = f"[{host}]" if ":" in host else host
        super().__init__(command, host, port, title="nodepass-orch", public_url=f"http://{shown}:{port}")
        self._token = token

    def initialize_logging(self) -> None:
        """Log warnings and errors only."""
        logging.basicConfig(level=logging.WARNING, format="nodepass-orch: %(message)s")

    async def handle_index(self, request: web.Request) -> Any:  # noqa: ANN401  the page, or what it is made from
        """Return the page, with links to the address of this request: a forwarded port or another name works too."""
        self.public_url = f"{request.scheme}://{request.host}"
        return await super().handle_index(request)

    async def on_startup(self, app: web.Application) -> None:
        """Print the address with the token."""
        print_message(
            f"open {self.public_url}/?token={self._token} in a browser; Ctrl-C ends the page, the tunnels keep running"
        )

    async def _make_app(self) -> web.Application:
        app = await super()._make_app()
        app.middlewares.extend((require_token(self._token), count_answers))
        return app

    async def serve_until_stopped(self) -> None:
        """Serve with the bounds of the local API until SIGINT or SIGTERM. Raises NetError."""
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            handle_signal(number, stopped.set)
        with contextlib.closing(ConnectionGuard()) as guard:
            runner = GuardedRunner(await self._make_app(), guard, logging.getLogger("aiohttp.server"), _GRACE_S)
            await runner.setup()
            try:
                await runner.listen(Address(self.host, self.port), "the page")
                await stopped.wait()
            finally:
                await runner.close_listeners()
                await runner.cleanup()


def require_token(token: str) -> Callable[..., Awaitable[web.StreamResponse]]:
    """Return a middleware that requires the token once and a cookie afterwards.

    Cookies are not bound to a port, so each token has its own cookie name, and requests of pages from other origins
    are rejected.
    """
    cookie = f"nodepass-orch-{hashlib.sha256(token.encode()).hexdigest()[:8]}"

    @web.middleware
    async def check(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.host:
            return web.Response(status=403, text="Requests from other origins are rejected.\n")
        if _is_equal(request.query.get("token"), token):
            # Removes the token from the address bar. A path of the request might name another host, as in //host.
            answer = web.Response(status=302, headers={"Location": "/"})
            answer.set_cookie(cookie, token, httponly=True, samesite="Strict")
            return answer
        if not _is_equal(request.cookies.get(cookie), token):
            return web.Response(status=403, text="Open the address with the token that the command printed.\n")
        response = await handler(request)
        if not response.prepared:
            response.headers.update(_SECURITY_HEADERS)
            if isinstance(response, web.Response) and response.content_type == "text/html" and response.text:
                response.text = response.text.replace("</head>", f"{_PAGE_STYLE}</head>", 1)
        return response

    return check


def _is_equal(given: str | None, token: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode(errors="surrogateescape"), token.encode())


def serve(command: str, host: str, port: int, token: str) -> int:
    """Serve the output of ``command`` until Ctrl-C. Port 0 selects a free port."""
    if not port:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            with socket.create_server((host, 0), family=family) as probe:
                port = probe.getsockname()[1]
        except OSError as error:
            print_message(f"cannot listen on {Address(host, 0)} for the page: {describe_bind_error(error)}")
            return EXIT_FAILED
    if not Address(host, port).is_loopback:
        print_message(
            f"warning: the page and its token are sent unencrypted to any host that can reach {Address(host, port)}; "
            "listen on 127.0.0.1 behind a proxy with TLS, or use ssh -L"
        )
    server = _TokenServer(command, host, port, token)
    server.initialize_logging()
    try:
        run_event_loop(server.serve_until_stopped())
    except NetError as error:
        print_message(str(error))
        return EXIT_FAILED
    return 0
