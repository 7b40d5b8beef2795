"""The result of a test of a tunnel as a JSON object, and each leg as a line of text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.status.json_types import TunnelTestJson, TunnelTestLegJson
    from tunnel.model.tunnel_test import LegResult

_NAMES: Final = {
    "link": "link",
    "data_connection": "data connection",
    "signal": "signal",
    "lookup": "name lookup",
    "dial": "dial",
    "first_byte": "first byte",
}
_NAME_WIDTH: Final = max(map(len, _NAMES.values()))
_MEANINGS: Final = {
    "link": "round trip",
    "data_connection": "wait for an idle one",
    "signal": "to the other end, and back over the data connection",
}


def encode_test(name: str, proto: str, legs: Iterable[LegResult]) -> TunnelTestJson:
    """Return the result of a test as the API shows it; ``proto`` is what the tunnel's visitors speak."""
    encoded: list[TunnelTestLegJson] = [
        {
            "leg": one.leg.value,
            "at": "here" if one.is_here else "other",
            "link": one.link,
            "target": one.target,
            "ms": None if one.duration_s is None else round(one.duration_s * 1000, 3),
            "error": one.error,
        }
        for one in legs
    ]
    return {"name": name, "proto": proto, "ok": all(leg["error"] is None for leg in encoded), "legs": encoded}


def describe_test(found: TunnelTestJson) -> list[str]:
    """Return one line for each leg: its name, the time, and what it is or why it failed."""
    links = {leg["link"] for leg in found["legs"] if leg["link"]}
    is_mixed = found.get("proto") == "both"  # an older daemon does not say it
    return [_describe_leg(leg, is_link_shown=len(links) > 1, is_mixed=is_mixed) for leg in found["legs"]]


def _describe_leg(leg: TunnelTestLegJson, *, is_link_shown: bool, is_mixed: bool) -> str:
    time = "failed" if leg["error"] else "-" if leg["ms"] is None else f"{leg['ms']:.1f} ms"
    parts = [leg["error"] or _MEANINGS.get(leg["leg"], "")]
    if leg["leg"] == "first_byte" and leg["ms"] is None and not leg["error"]:
        parts = ["it waits for its visitor to speak"]
    elif leg["leg"] == "dial" and leg["ms"] is None and not leg["error"]:
        parts = ["UDP: it is not dialled"]
    elif leg["leg"] == "dial" and is_mixed and not leg["error"]:
        parts = ["over TCP; UDP is not tested"]
    if leg["target"]:
        parts.insert(0, f"target {leg['target']}" + ("" if leg["at"] == "here" else ", timed at the other end"))
    if is_link_shown and leg["link"]:
        parts.insert(0, f"link {leg['link']}")
    return f"{_NAMES.get(leg['leg'], leg['leg']):{_NAME_WIDTH}}  {time:>10}  {': '.join(filter(None, parts))}".rstrip()


def summarize_test(found: TunnelTestJson) -> str:
    """Return the result in one line: that the test passed, or each different reason why a leg failed."""
    reasons = dict.fromkeys(_describe_failure(leg) for leg in found["legs"] if leg["error"])
    return f"test: failed: {'; '.join(reasons)}" if reasons else "test: passed"


def _describe_failure(leg: TunnelTestLegJson) -> str:
    name = _NAMES.get(leg["leg"], leg["leg"])
    return f"{name}: {leg['error']}" if leg["target"] is None else f"{name} of target {leg['target']}: {leg['error']}"
