"""Names, cities and trades, and invented names, so that the model learns to copy a name, not a list of them."""

from __future__ import annotations

from random import Random

from .turn import listed

NAMES = listed(
    "Jane Joe Sam Anna Tom Maria Paul Lisa Mark Emma Noah Mia Ben Lena Max Clara Luis Sofia Hugo Nina Peter Laura Jack "
    "Sara David Julia Leo Alice Bob Carol Dave Eve Frank Grace Henry Ivy John Kate Liam Mary Nick Olivia Oscar Rosa "
    "Ruth Simon Tina Tim Vera Victor Will Zoe Adam Amy Bella Carlos Diana Elena Felix Gina Hannah Ian Ida "
    "Jonas Karl Klara "
    "Lucas Lucy Marco Marie Mona Nora Omar Otto Pablo Pia Rita Robert Sandra Stefan Theo Thomas Ursula Yara Yusuf "
    "Pierre Camille Louis Chloe Jules Hans Greta Fritz Heidi Juan Carmen Diego Lucia Giulia Luca Paolo Chiara Marta "
    "Ali Fatima Chen Mei Kenji Yuki Ravi Priya Ivan Olga Bruno Ella Finn George Helen Isaac James Linda "
    "Martin Rachel Susan"
)
CITIES = listed(
    "Paris Berlin London Rome Madrid Vienna Lisbon Oslo Prague Athens Hamburg Munich Lyon Milan Naples Seville Boston "
    "Chicago Denver Dublin Geneva Zurich Tokyo Toronto Sydney Lima Cairo Delhi Warsaw Porto Bonn Cologne Turin "
    "Valencia Leeds Bristol Nice Ghent Graz Bergen Austin Dallas Kyoto Osaka"
)
JOBS = listed(
    "baker teacher doctor nurse pilot farmer painter writer lawyer cook driver singer student gardener plumber "
    "carpenter dentist waiter tailor butcher judge chemist sailor dancer"
)
_ONSETS = listed("b c d f g h j k l m n p r s t v w z br ch cl dr fr gr kr pl sh st th tr")
_VOWELS = listed("a e i o u ai ea io")
_CODAS = ["", "", "", "l", "n", "r", "s", "m", "k", "th", "x"]


def invented(rng: Random) -> str:
    syllables = rng.choice((1, 2, 2, 2, 3))
    word = "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables)
    ).capitalize()
    return word if len(word) > 2 else word + "na"


def name(rng: Random) -> str:
    return rng.choice(NAMES) if rng.random() < 0.8 else invented(rng)


def names(rng: Random, count: int, consonant: bool = False) -> list[str]:
    """Different names; with `consonant`, none that French would elide before."""
    chosen: list[str] = []
    while len(chosen) < count:
        candidate = name(rng)
        if candidate not in chosen and not (consonant and candidate[0] in "AEIOUHY"):
            chosen.append(candidate)
    return chosen


def city(rng: Random) -> str:
    return rng.choice(CITIES) if rng.random() < 0.8 else invented(rng)
