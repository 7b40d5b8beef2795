"""How hard a key is to guess: an estimate in bits, for warnings. Pure, and linear in the length of the key.

The estimate is generous to long texts and hard on what people write instead of a random key: common words, runs along
the alphabet or the keyboard, repetitions, years. A guess costs an attacker one scrypt (tunnel.protocol.keys).
"""

from __future__ import annotations

import math
import re
import string
from functools import cache
from itertools import pairwise
from typing import Final

MIN_KEY_BITS: Final = 64.0
"""A key with fewer bits is called weak: 20 random digits, or 11 random letters and digits, have as many."""

_WORD_BITS: Final = 10.0  # a word of a list of a thousand
_SHORT_WORD_BITS: Final = 6.0
_YEAR_BITS: Final = 6.0
_SEPARATOR_BITS: Final = 2.0
_CHAIN_BITS: Final = 3.0  # of all the characters that continue a run or a repetition: its length
_MIN_REPEATED: Final = 3  # characters that have to occur again

_WORDS: Final = (  # noqa: SIM905  a page of lines otherwise
    # what documentation and examples of such programs contain
    "access admin administrator changeit changeme changethis client cloud config connect container credential daemon "
    "default demo docker example foobar forward gateway geheim generate gitlab guest hidden home host insert internal "
    "kennwort local localhost login manager network nodepass nopass none office orch passphrase passwd passwort "
    "password placeholder please private production proxy public random relay remote replace reverse root router "
    "sample secret secure server service shared staging super sysadmin system temp test testing token toor tunnel "
    "undefined user value website whatever workstation your "
    # what people choose
    "alpha apple august autumn baseball basketball batman beach beer black blue bonjour chocolate coffee computer "
    "cookie december diamond dragon eagle february flower football forever freedom friday friend ginger google gold "
    "green hallo hammer hello hockey hottie hunter iloveyou internet january jesus july june jordan killer letmein "
    "liverpool london love lucky magic master matrix merlin michael monday monkey morning mother music mustang "
    "november october orange paris passion pepper phoenix pokemon princess purple qwertz rainbow saturday september "
    "shadow silver snow soccer spring starwars summer sunday sunshine superman thomas thursday tiger trustno tuesday "
    "wednesday welcome winter wizard yellow"
).split()
_SHORT_WORDS: Final = (  # noqa: SIM905  as above
    "and api app bar baz box dev foo for god key keys lab mqtt my new old one our pass psk pwd run sex ssh ssl sun "
    "that the this tls two uat vpn web xxx yes"
).split()
_LOOKALIKES: Final = str.maketrans("013457@$!", "oleastasi")  # in a word, each counts as the letter
_ROWS: Final = ("1234567890", "qwertyuiop", "qwertzuiop", "asdfghjkl", "zxcvbnm", "yxcvbnm")
_ROW_STEPS: Final = {
    pair: (row, direction) for row in _ROWS for a, b in pairwise(row) for pair, direction in ((a + b, 1), (b + a, -1))
}
"""From one key of a keyboard to the next one: the row, and the direction."""
_MAX_ESTIMATED: Final = 1000  # characters; a file may have many more, and these decide
_SEPARATORS: Final = frozenset(" \t-_.,:;/|+=")
_CLASSES: Final = (string.ascii_lowercase, string.ascii_uppercase, string.digits, string.punctuation)
_OTHER_CHARACTERS: Final = 100  # of scripts beyond ASCII
_YEAR: Final = re.compile(r"(?<![0-9])(?:19|20)[0-9]{2}(?![0-9])")


def estimate_bits(text: str) -> float:
    """Return about how many bits of a key have to be guessed. Of a long text only the start is looked at."""
    text = text.strip()[:_MAX_ESTIMATED]
    lowered = "".join(character.lower()[0] for character in text)  # of the same length, also with letters as İ
    known = _known_parts(text, lowered)
    per_character = math.log2(_alphabet_size(text))
    seen: set[str] = set()
    bits, position, is_chain = 0.0, 0, False
    while position < len(text):
        found = known.get(position)
        if found is not None:
            end, cost = found
            bits += cost
            position, is_chain = end, is_chain and not cost  # a repeated word between repeated characters
            continue
        tail = lowered[max(0, position + 1 - _MIN_REPEATED) : position + 1]
        if _continues_run(tail) or tail in seen:
            bits += 0.0 if is_chain else _CHAIN_BITS
            is_chain = True
        else:
            bits += _SEPARATOR_BITS if text[position] in _SEPARATORS else per_character
            is_chain = False
        if len(tail) == _MIN_REPEATED:
            seen.add(tail)
        position += 1
    return bits


@cache
def _known_words() -> re.Pattern[str]:
    """Return the pattern of common words. It is compiled when a key is estimated, because that takes 15 ms."""
    return re.compile("|".join(sorted(_WORDS, key=len, reverse=True)))


@cache
def _short_words() -> re.Pattern[str]:
    """Return the pattern of short words, which stand alone or start with a capital."""
    words = "|".join(sorted(_SHORT_WORDS, key=len, reverse=True))
    return re.compile(rf"(?:(?<![A-Za-z])|(?=[A-Z]))(?i:{words})(?![a-z])")


def _known_parts(text: str, lowered: str) -> dict[int, tuple[int, float]]:
    """Return the common words and years in a text: by their start, their end and their bits. A repetition has none."""
    words, short = _known_words(), _short_words()
    alike = lowered.translate(_LOOKALIKES)
    found: dict[int, tuple[int, float]] = {}
    repeated: set[str] = set()
    for matches, bits in (
        (_YEAR.finditer(lowered), _YEAR_BITS),
        (words.finditer(lowered), _WORD_BITS),
        (words.finditer(alike), _WORD_BITS),
        (short.finditer(text), _SHORT_WORD_BITS),
        (short.finditer(alike), _SHORT_WORD_BITS),
    ):
        for match in matches:
            if match.start() not in found:
                found[match.start()] = match.end(), 0.0 if match[0] in repeated else bits
                repeated.add(match[0])
    return found


def _alphabet_size(text: str) -> int:
    used = set(text) - _SEPARATORS
    size = sum(len(kind) for kind in _CLASSES if used & set(kind))
    return max(2, size + (0 if all(map(str.isascii, used)) else _OTHER_CHARACTERS))


def _continues_run(tail: str) -> bool:
    """Whether the last of three characters repeats the step from the first to the second one."""
    if len(tail) < _MIN_REPEATED:
        return False
    first, second = _steps(tail[0], tail[1]), _steps(tail[1], tail[2])
    return not first.isdisjoint(second)


def _steps(before: str, after: str) -> set[object]:
    """Return the short steps from one character to another: in the alphabet, and on a keyboard."""
    distance = ord(after) - ord(before)
    steps: set[object] = {distance} if abs(distance) <= 1 else set()
    if before + after in _ROW_STEPS:
        steps.add(_ROW_STEPS[before + after])
    return steps
