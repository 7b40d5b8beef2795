"""Weak keys: what people write instead of a random key is weak, and what a generator makes is not."""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunnel.model.key_strength import estimate_bits
from tunnel.model.keys import Key, generate_key

WEAK = (
    "a",
    "KEY",
    "key",
    "Key",
    "k3y",
    "secret",
    "password",
    "P@ssw0rd",
    "changeme",
    "ChangeMe!",
    "geheim",
    "test",
    "letmein",
    "hunter2",
    "admin123",
    "SuperSecretPassword123!",
    "my-secret-key-2024",
    "nodepass-orch-shared-key",
    "MySecretKey",
    "ThisIsMySecretKey",
    "correcthorse",
    "12345678901234567890",
    "qwertyuiopasdfghjkl",
    "abcdefghijklmnopqrstuvwxyz0123456789",
    "abcabcabcabcabcabcabcabc",
    "deadbeefdeadbeefdeadbeef",
    "Zq7Wm2Rk9x",
)


@pytest.mark.parametrize("text", [*WEAK, "a" * 4000, "Hello World Hello World", "password" * 20, "12 " * 50])
def test_common_short_and_repeated_keys_are_weak(text: str) -> None:
    assert Key(text).is_weak, estimate_bits(text)


@pytest.mark.parametrize(
    "text",
    ["Zq7Wm2Rk9xTv4Lp8", "correct horse battery staple", "a shared key of some length", "Übergrößenträger für Äpfel"],
)
def test_long_keys_of_other_words_or_characters_are_not_weak(text: str) -> None:
    assert not Key(text).is_weak, estimate_bits(text)


@pytest.mark.parametrize("characters", [string.ascii_letters + string.digits, string.hexdigits, string.printable[:94]])
def test_a_random_key_of_96_bits_is_not_weak(characters: str) -> None:
    length = {22: 24, 62: 17, 94: 16}[len(set(characters))]
    chance = random.Random(length)  # very rarely, a random key looks like a weak one and is called one
    for _ in range(200):
        text = "".join(chance.choice(characters) for _ in range(length))
        assert not Key(text).is_weak, (text, estimate_bits(text))


def test_a_key_of_keygen_is_not_weak_whatever_its_characters_are() -> None:
    assert not any(Key(generate_key()).is_weak for _ in range(200))


@given(st.text(max_size=60))
@example("010C@1")  # a word in it, and the rest between two of them
def test_any_text_has_an_estimate_that_grows_with_nothing_repeated(text: str) -> None:
    bits = estimate_bits(text)
    assert 0.0 <= bits <= 12 * len(text)
    if text:
        assert estimate_bits(text * 40) <= bits * 2 + 12 * 4


@pytest.mark.parametrize("text", ["x9Ks", "a", "my ", "aaaaaaaaaadminis", "2024"])
def test_only_the_start_of_a_long_text_is_looked_at(text: str) -> None:
    assert estimate_bits(text * 16_000) == estimate_bits((text * 1000)[:1000])
