"""Keys: the format of keygen, base keys, and the one computation of each key in a process."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import pickle
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.model.errors import InvalidValueError, OptionError, UrlError
from tunnel.model.keys import Key, encode_key, generate_key
from tunnel.model.options import KEY_VARIABLE, environment_layer
from tunnel.model.url import parse_url
from tunnel.protocol import keys
from tunnel.protocol.keys import compute_base_key, service_key
from tunnel.runtime import key_stretching
from tunnel.runtime.blocking_calls import ThreadShortageError
from tunnel.runtime.key_stretching import derive_base_key
from tunnel.runtime.sockets import NetError

_BASE64URL = string.ascii_letters + string.digits + "-_"


def test_a_generated_key_is_its_random_bytes_and_a_checksum() -> None:
    text = generate_key()
    assert text.startswith("npk_")
    assert len(text) == 52
    decoded = base64.urlsafe_b64decode(text[4:])
    assert decoded[32:] == hashlib.sha256(b"nodepass-orch key\0" + decoded[:32]).digest()[:4]
    assert Key(text).random_bytes == compute_base_key(Key(text)) == decoded[:32]
    assert generate_key() != text


@given(st.binary(min_size=32, max_size=32))
def test_a_url_holds_a_generated_key_as_it_is(random_bytes: bytes) -> None:
    text = encode_key(random_bytes)
    url = parse_url(f"server://{text}@127.0.0.1:1/127.0.0.1:2")
    assert url.key == Key(text)
    assert url.revealed() == f"server://{text}@127.0.0.1:1/127.0.0.1:2"
    assert pickle.loads(pickle.dumps(url)).key.random_bytes == random_bytes  # noqa: S301  our own bytes


@given(st.binary(min_size=32, max_size=32), st.integers(0, 47), st.sampled_from(_BASE64URL))
def test_one_wrong_character_of_a_generated_key_is_found(random_bytes: bytes, at: int, other: str) -> None:
    text = encode_key(random_bytes)
    damaged = text[: 4 + at] + other + text[5 + at :]
    if damaged != text:
        with pytest.raises(InvalidValueError, match="starts with npk_ but is damaged"):
            Key(damaged)


@pytest.mark.parametrize(
    "damage", [lambda t: t[:-1], lambda t: t + "A", lambda t: t[:9] + " " + t[9:], lambda _: "npk_"]
)
def test_a_generated_key_that_is_too_short_or_too_long_is_damaged(damage: object) -> None:
    assert callable(damage)
    with pytest.raises(InvalidValueError, match="damaged"):
        Key(damage(generate_key()))


def test_a_damaged_key_is_a_fault_of_its_place_that_does_not_show_it() -> None:
    damaged = generate_key()[:-1] + "*"
    with pytest.raises(UrlError, match="damaged") as of_url:
        parse_url(f"server://{damaged}@127.0.0.1:1/127.0.0.1:2")
    assert of_url.value.offset == len("server://")
    with pytest.raises(OptionError, match="damaged") as of_environment:
        environment_layer({KEY_VARIABLE: damaged}).parse("key")
    assert damaged[4:20] not in f"{of_url.value} {of_environment.value}"


def test_a_key_that_is_not_utf_8_is_a_fault() -> None:
    with pytest.raises(InvalidValueError, match="not UTF-8"):
        Key("a\udcff")


def test_other_texts_stay_valid_keys() -> None:
    for text in ("npk", "NPK_x", "x", "Zq7Wm2Rk9xTv4Lp8Zq7Wm2Rk9xTv4Lp8Zq7Wm2Rk9xT"):
        assert Key(text).random_bytes is None


def test_the_base_key_of_a_text_is_its_scrypt() -> None:
    password = hashlib.sha256(b"nodepass-orch 2 key\0" + "Schlüssel".encode()).digest()
    expected = hashlib.scrypt(password, salt=b"nodepass-orch 2", n=32768, r=8, p=1, maxmem=1 << 26, dklen=32)
    assert compute_base_key(Key("Schlüssel")) == expected
    assert compute_base_key(None) == bytes(32)


def test_a_key_with_a_zero_byte_at_its_end_is_another_key() -> None:
    """PBKDF2, inside scrypt, would treat both alike."""
    assert compute_base_key(Key("key")) != compute_base_key(Key("key\0"))


def test_each_service_has_a_key_of_its_own() -> None:
    assert len({service_key(base, name) for base in (b"a" * 32, b"b" * 32) for name in ("", "web", "WEB")}) == 6


# --- in a process ---------------------------------------------------------------------------------------------------


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Key | None]:
    """The keys that were computed in this test."""
    found: list[Key | None] = []

    def compute(key: Key | None) -> bytes:
        found.append(key)
        return b"base key of " + (key.reveal().encode() if key else b"none")

    monkeypatch.setattr(key_stretching, "compute_base_key", compute)
    monkeypatch.setattr(key_stretching, "_remembered", {})
    return found


async def test_engines_that_start_together_compute_a_key_once(computed: list[Key | None]) -> None:
    derived = await asyncio.gather(*(derive_base_key(Key(text)) for text in ("one", "two", "one", "two", "one")))
    assert derived[0] == derived[2] == derived[4] == b"base key of one"
    assert await derive_base_key(Key("one")) == b"base key of one"
    assert computed == [Key("one"), Key("two")]


async def test_a_process_remembers_a_bounded_number_of_keys_and_no_text(
    computed: list[Key | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_stretching, "MAX_REMEMBERED_KEYS", 2)
    for text in ("one", "two", "three", "one"):
        await derive_base_key(Key(text))
    assert computed == [Key("one"), Key("two"), Key("three"), Key("one")]
    assert len(key_stretching._remembered) == 2
    assert not any(b"three" in fingerprint for fingerprint in key_stretching._remembered)


@pytest.mark.parametrize("error", [MemoryError(), ValueError("memory limit exceeded"), ThreadShortageError("keys")])
async def test_a_key_that_cannot_be_computed_now_is_a_fault_of_the_moment(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(key: Key | None) -> bytes:
        raise error

    monkeypatch.setattr(key_stretching, "compute_base_key", fail)
    with pytest.raises(NetError, match=r"32 MiB|no further thread"):
        await derive_base_key(Key("a text that no other test has"))


def test_a_guess_costs_scrypt_with_32_mib() -> None:
    assert (keys._SCRYPT_N, keys._SCRYPT_R, keys._SCRYPT_P) == (1 << 15, 8, 1)
