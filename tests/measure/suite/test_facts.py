"""The checks of arithmetic, the president and JSON for three people."""

from __future__ import annotations

import pytest

from mixq.measure.suite.checks import check
from mixq.measure.suite.reading import Verdict

MARK, JOE, SAM = (
    '{"name": "Mark", "gender": "male", "age": 19}',
    '{"name": "Joe", "gender": "male", "age": 19}',
    '{"name": "Sam", "gender": "female", "age": 30}',
)

RIGHT: dict[str, dict[str, list[str]]] = {
    "arithmetic": {
        "en": [
            "20",
            "25 - (4 * 2) + 3 = 25 - 8 + 3 = 17 + 3 = 20",
            "The result is 20, because the parentheses come first (4 * 2 = 8), then 25 - 8 = 17, then 3 is added.",
            "1. First calculate 4 * 2 = 8.\n2. Then 25 - 8 = 17.\n3. Then 17 + 3 = 20.\n\nSo the answer is **20**.",
            "Following the order of operations, 25 - (4 * 2) + 3 equals twenty.",
            "25 - (4 * 2) + 3\n= 25 - 8 + 3\n= 17 + 3\n= 20.0",
        ],
        "fr": ["25 - (4 * 2) + 3 = 25 - 8 + 3 = 20.", "Cela fait 20.", "Le résultat est 20."],
        "de": [
            "25 - (4 * 2) + 3 = 20",
            "Das Ergebnis ist zwanzig.",
            "Zuerst 4 * 2 = 8, dann 25 - 8 = 17, dann 17 + 3 = 20.",
        ],
        "es": ["25 - (4 * 2) + 3 = 20", "El resultado es 20.", "Es 20."],
        "it": ["25 - (4 * 2) + 3 = 20", "Il risultato è 20.", "Fa venti."],
    },
    "president": {
        "en": [
            "Bill Clinton was president of the United States in 1996.",
            "The president of the United States in 1996 was Bill Clinton. He was re-elected in November 1996, "
            "defeating Republican candidate Bob Dole, and was succeeded by George W. Bush in 2001.",
            "In 1996, after beating George H. W. Bush four years earlier, William Jefferson Clinton held the office.",
            "Clinton. His vice president was Al Gore, and the first lady was Hillary Clinton.",
            "It was Clinton, not George Bush.",
        ],
        "fr": [
            "C'était Bill Clinton.",
            "En 1996, le président était Bill Clinton, réélu face à Bob Dole.",
            "Bill Clinton",
        ],
        "de": [
            "1996 war Bill Clinton Präsident der Vereinigten Staaten.",
            "Bill Clinton. Sein Nachfolger George W. Bush kam 2001 ins Amt.",
        ],
        "es": ["El presidente era Bill Clinton.", "Bill Clinton, que derrotó a Bob Dole en las elecciones de 1996."],
        "it": ["Il presidente era Bill Clinton.", "Nel 1996 era Bill Clinton, che sconfisse Bob Dole."],
    },
    "json": {
        "en": [
            f"[{MARK}, {JOE}, {SAM}]",
            f"Here is the JSON:\n\n```json\n[\n  {MARK},\n  {JOE},\n  {SAM}\n]\n```\nLet me know if you need more.",
            f'{{"people": [{SAM}, {MARK}, {JOE}]}}',
            f'[{MARK}, {JOE}, {{"name": "Sam", "gender": "Woman", "age": "30", "id": 3}}]',
        ],
        "fr": [f"[{MARK}, {JOE}, {SAM}]".replace('"male"', '"homme"').replace('"female"', '"femme"')],
        "de": [f"```\n[{MARK}, {JOE}, {SAM}]\n```".replace('"male"', '"männlich"').replace('"female"', '"weiblich"')],
        "es": [f"[{MARK}, {JOE}, {SAM}]".replace('"male"', '"masculino"').replace('"female"', '"femenino"')],
        "it": [f"[{MARK}, {JOE}, {SAM}]".replace('"male"', '"M"').replace('"female"', '"F"')],
    },
}

WRONG: dict[str, dict[str, list[str]]] = {
    "arithmetic": {
        "en": [
            "14",
            "25 - (4 * 2) + 3 = 25 - 8 + 3 = 25 - 11 = 14",
            "The answer is 45.",
            "25 - 4 = 21, 21 * 2 = 42, 42 + 3 = 45",
            "Let us calculate it step by step, beginning with the parentheses.",
            "The answer is 20. Or is the answer 14?",
            "17 + 3 = 20, but then the result is 17.",
        ],
        "fr": ["Cela fait 14.", "25 - (4 * 2) + 3 = 45", "Le résultat est 17."],
        "de": ["Das Ergebnis ist 14.", "25 - 11 = 14", "Ich weiß es nicht."],
        "es": ["El resultado es 14.", "25 - (4 * 2) + 3 = 45"],
        "it": ["Il risultato è 14.", "25 - (4 * 2) + 3 = 17"],
    },
    "president": {
        "en": [
            "George H. W. Bush was president of the United States in 1996.",
            "The president in 1996 was Al Gore.",
            "Hillary Clinton was the president of the United States in 1996.",
            "I do not know that.",
            "In 1996 it was George Bush, who was followed by Bill Clinton.",
            "Ronald Reagan was the president in 1996. Bill Clinton was elected later.",
            "It was not Bill Clinton.",
        ],
        "fr": ["C'était George Bush.", "Le président était Ronald Reagan, avant Bill Clinton.", "Jacques Chirac."],
        "de": ["George Bush war 1996 Präsident.", "Das war Roman Herzog."],
        "es": ["Era George Bush.", "El presidente era Ronald Reagan."],
        "it": ["Era George Bush.", "Il presidente era Barack Obama."],
    },
    "json": {
        "en": [
            f"[{MARK}, {JOE}]",
            f"[{MARK}, {JOE}, {SAM}",
            f"[{MARK}, {JOE}, {SAM.replace('30', '19')}]",
            f"[{MARK}, {JOE}, {SAM.replace('female', 'male')}]",
            f"[{MARK}, {JOE}, {SAM.replace('gender', 'sex')}]",
            "There are three people: Mark, Joe and Sam.",
            f"[{MARK}, {JOE}, {SAM},]",
            '{"name": "Mark", "gender": "male", "age": 19}',
            f"{MARK}\n{JOE}\n{SAM}",
            "[" * 5000,
        ],
        "fr": [f"[{MARK}, {JOE}, {SAM}, {SAM}]", f"[{MARK}, {MARK}, {SAM}]"],
        "de": [f"[{MARK}, {JOE}, {SAM}]".replace('"', "'"), '["Mark", "Joe", "Sam"]'],
        "es": [f"[{MARK}, {JOE}, {SAM.replace('30', 'null')}]"],
        "it": [f"[{MARK}, {JOE}, {SAM.replace('Sam', 'Anna')}]"],
    },
}


def cases(answers: dict[str, dict[str, list[str]]]) -> list[tuple[str, str, str]]:
    return [
        (test, language, text) for test in answers for language in answers[test] for text in answers[test][language]
    ]


@pytest.mark.parametrize(("test", "language", "answer"), cases(RIGHT))
def test_right(test: str, language: str, answer: str) -> None:
    assert check(test, language, answer) == Verdict(True)


@pytest.mark.parametrize(("test", "language", "answer"), cases(WRONG))
def test_wrong(test: str, language: str, answer: str) -> None:
    verdict = check(test, language, answer)
    assert not verdict.passed
    assert verdict.reason


@pytest.mark.parametrize(
    ("test", "answer", "reason"),
    [
        ("arithmetic", "The answer is 14.", "says 14; it is 20"),
        ("president", "Al Gore was it.", "names Gore; it was Bill Clinton"),
        ("json", f"[{MARK}, {JOE}, {SAM.replace('30', '19')}]", "Sam is f, 19; should be f, 30"),
        ("json", f"[{MARK}, {JOE}, {SAM.replace('gender', 'sex')}]", "a person without 'gender'"),
    ],
)
def test_reasons(test: str, answer: str, reason: str) -> None:
    assert check(test, "en", answer).reason == reason
