"""The checks of letters, bullet points and programs, which are read and not run."""

from __future__ import annotations

import pytest

from mixq.measure.suite.checks import check
from mixq.measure.suite.programs import fenced_blocks, python_code
from mixq.measure.suite.reading import Verdict

LETTERS = {
    "en": "Dear Ms. Brown,\n\nPlease accept this letter as notice of my resignation from my position at the "
    "company. My last "
    "day of work will be the end of this month. I am grateful for the time that I have spent with the team, and I "
    "will do "
    "my best to hand over all of my work.\n\nSincerely,\nJohn Doe",
    "fr": "Objet : démission\n\nMadame, Monsieur,\n\nJe vous informe par la présente de ma décision de "
    "démissionner de mon "
    "poste au sein de votre entreprise. Mon dernier jour de travail sera le dernier jour du mois. Je vous remercie "
    "pour "
    "les années que j'ai passées dans votre équipe.\n\nJe vous prie d'agréer, Madame, Monsieur, mes salutations "
    "distinguées.\n\nJean Dupont",
    "de": "Sehr geehrte Frau Braun,\n\nhiermit kündige ich mein Arbeitsverhältnis zum Ende des Monats. Ich bedanke "
    "mich für die "
    "gute Zusammenarbeit in den letzten Jahren und wünsche Ihnen und dem ganzen Team für die Zukunft alles Gute. Die "
    "Übergabe meiner Aufgaben bereite ich vor, und ich stehe für Fragen zur Verfügung.\n\nMit freundlichen "
    "Grüßen\nMax Mustermann",
    "es": "Estimado señor García:\n\nPor medio de la presente le comunico mi renuncia al puesto que ocupo en la "
    "empresa. Mi "
    "último día de trabajo será el último día de este mes. Le agradezco la confianza y el apoyo que he recibido "
    "durante "
    "estos años, y me comprometo a dejar todo en orden.\n\nAtentamente,\nJuan Pérez",
    "it": "Gentile dottor Rossi,\n\ncon la presente Le comunico le mie dimissioni dal posto che occupo nella Sua "
    "azienda. Il mio "
    "ultimo giorno di lavoro sarà l'ultimo del mese. La ringrazio per la fiducia e per il tempo che ho passato con "
    "il "
    "gruppo, e farò tutto il possibile per un buon passaggio di consegne.\n\nCordiali saluti,\nMario Bianchi",
}
BULLETS = {
    "en": "- Clara Moss founded the library of Arden in 1892 with 300 books.\n- After a fire in 1944 it was in a "
    "school, and "
    "since 1951 it is in the old railway station.\n- It lends 30,000 books, and tools since 2019.",
    "fr": "Voici le résumé :\n\n* La bibliothèque d'Arden a été fondée en 1892 par Clara Moss.\n* Après un "
    "incendie en 1944, "
    "elle est dans l'ancienne gare depuis 1951.\n* Elle prête 30 000 livres et des outils.",
    "de": "• Die Bücherei wurde 1892 von Clara Moss gegründet.\n• Nach dem Brand von 1944 zog sie 1951 in den "
    "alten Bahnhof.\n"
    "• Sie verleiht 30.000 Bücher und seit 2019 auch Werkzeuge.",
    "es": "1. La biblioteca fue fundada en 1892 por Clara Moss.\n2. Después del incendio de 1944 se trasladó en "
    "1951 a la "
    "antigua estación.\n3. Presta 30.000 libros y, desde 2019, también herramientas.",
    "it": "- La biblioteca fu fondata nel 1892 da Clara Moss.\n- Dopo l'incendio del 1944 si trasferì nel 1951 "
    "nella vecchia "
    "stazione.\n- Presta 30.000 libri e, dal 2019, anche attrezzi.",
}
SNAKE = """import curses
import random

def main(screen):
    curses.curs_set(0)
    screen.timeout(100)
    height, width = screen.getmaxyx()
    snake = [(height // 2, width // 2)]
    food = (random.randint(1, height - 2), random.randint(1, width - 2))
    key = curses.KEY_RIGHT
    while True:
        pressed = screen.getch()
        key = key if pressed == -1 else pressed
        head = (snake[0][0], snake[0][1] + 1)
        if head in snake or head[1] >= width - 1:
            break
        snake.insert(0, head)
        if head == food:
            food = (random.randint(1, height - 2), random.randint(1, width - 2))
        else:
            screen.addch(*snake.pop(), " ")
        screen.addch(*head, "#")
        screen.addch(*food, "*")

curses.wrapper(main)
"""


@pytest.mark.parametrize("language", LETTERS)
def test_letters(language: str) -> None:
    assert check("letter", language, LETTERS[language]) == Verdict(True)
    other = "de" if language == "fr" else "fr"
    assert check("letter", other, LETTERS[language]).reason.startswith("is in ")
    body = LETTERS[language].split("\n\n")
    for answer, reason in (
        ("\n\n".join(body[:2])[:100], "words are too few for a letter"),
        (LETTERS[language].rsplit("\n\n", 1)[0] if language != "fr" else "\n\n".join(body[:-2]), "no closing"),
    ):
        verdict = check("letter", language, answer)
        assert not verdict.passed
        assert reason in verdict.reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I am sorry, but I cannot write this letter for you.", "words are too few for a letter"),
        (LETTERS["en"].replace("Dear Ms. Brown,", "Here is what to think of:"), "no salutation"),
        (LETTERS["en"].replace("notice of my resignation from", "my application for"), "does not resign"),
        (LETTERS["en"] * 12, "too long"),
    ],
)
def test_what_is_no_letter(answer: str, reason: str) -> None:
    assert reason in check("letter", "en", answer).reason


@pytest.mark.parametrize("language", BULLETS)
def test_bullet_points(language: str) -> None:
    points = BULLETS[language]
    assert check("bullets", language, points) == Verdict(True)
    lines = points.splitlines()
    assert check("bullets", language, "\n".join(lines[:-1])).reason == "2 bullet points instead of three"
    assert check("bullets", language, f"{points}\n{lines[-1]}").reason == "4 bullet points instead of three"
    assert check("bullets", language, " ".join(points.split())).reason.endswith("bullet points instead of three")
    assert check("bullets", "de" if language != "de" else "it", points).reason.startswith("is in ")
    assert check("bullets", language, "- A\n- B\n- C").reason == "leaves out nearly all facts"


def test_bullet_points_with_a_text_beside_them() -> None:
    assert "outside the bullet points" in check("bullets", "en", BULLETS["en"] + "\n" + "And so on. " * 15).reason
    assert "a bullet point of" in check("bullets", "en", BULLETS["en"] + " and more" * 40).reason


@pytest.mark.parametrize(
    "code",
    [
        "for i in range(1, 101):\n    print(i)",
        "for i in range(100):\n    print(i + 1)",
        "i = 1\nwhile i <= 100:\n    print(i)\n    i += 1",
        "i = 0\nwhile True:\n    i = i + 1\n    if i > 100:\n        break\n    print(i, end=' ')",
        "print(*range(1, 101), sep='\\n')",
        "print(list(range(1, 101)))",
        "print('\\n'.join(str(n) for n in range(1, 101)))",
        "print(', '.join(map(str, range(1, 101))))",
        "[print(x) for x in range(1, 101)]",
        'def show(start, end=100):\n    """Print."""\n    for n in range(start, end + 1):\n        '
        'print(f"{n}")\n\n\n'
        'if __name__ == "__main__":\n    show(1)',
        "numbers = []\nfor n in range(1, 101):\n    numbers.append(n)\nfor n in numbers:\n    print(n)",
    ],
)
def test_programs_that_count_to_a_hundred(code: str) -> None:
    for answer in (code, f"Here it is:\n\n```python\n{code}\n```\n\nIt prints the numbers.", f"```\n{code}\n```"):
        assert check("numbers", "en", answer) == Verdict(True)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("for i in range(1, 100):\n    print(i)", "counts 1 to 99"),
        ("for i in range(100):\n    print(i)", "counts 0 to 99"),
        ("for i in range(1, 11):\n    print(i)", "counts 1 to 10"),
        ("for i in range(0):\n    print(i)", "counts nothing"),
        ("for i in range(1, 101):\nprint(i)", "the code does not parse"),
        ("i = 1\nwhile i <= 100:\n    print(i)", "has an infinite loop"),
        ("while True:\n    print('1 to 100')", "has an infinite loop"),
        ("import os\nos.system('seq 100')", "prints nothing"),
        ("print('x' * 10 ** 9)", "does not count from 1 to 100"),
        ("for i in range(10 ** 9):\n    print(i)", "does not count from 1 to 100"),
        ("def f(n):\n    f(n + 1)\nf(1)", "prints nothing"),
        ("print(1)\nfor i in range(1, 101):\n    print(j)", "uses j, which is not defined"),
        ("print(1 // 0)", "does not count from 1 to 100"),
        ("x = 2", "prints nothing"),
    ],
)
def test_programs_that_do_not(code: str, reason: str) -> None:
    assert reason in check("numbers", "en", f"```python\n{code}\n```").reason


def test_answers_without_a_program() -> None:
    assert check("numbers", "en", "You can use a loop for that.").reason == "no Python code"
    assert check("numbers", "en", "numbers").reason == "no Python code"
    assert check("numbers", "en", ", ".join(map(str, range(1, 101)))).reason == "no Python code"


def test_snake() -> None:
    assert check("snake", "en", f"Here it is:\n```python\n{SNAKE}```") == Verdict(True)
    assert check("snake", "en", SNAKE) == Verdict(True)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("import curses\n", "import pygame\n", "does not import curses"),
        ("curses.wrapper(main)", "main(None)", "starts no curses screen"),
        ("screen.getch()", "-1", "reads no keys"),
        ("screen.addch", "print", "draws nothing"),
        ("while True", "if True", "has no game loop"),
        ("import random\n", "", "uses random, which is not defined"),
        ("        if head == food:\n", "        if head = food:\n", "does not parse"),
        ("import curses", "import curses (", "does not parse"),
    ],
)
def test_snakes_that_cannot_run(old: str, new: str, reason: str) -> None:
    assert old in SNAKE
    code = SNAKE.replace("break\n        snake", "return\n        snake") if new == "if True" else SNAKE
    assert reason in check("snake", "en", f"```python\n{code.replace(old, new)}\n```").reason


def test_code_blocks() -> None:
    text = "a\n```python\nx = 1\n```\nb\n~~~\ny\n~~~\n   ```sh\nls\n   ```\n```py\nprint(2)"
    assert fenced_blocks(text) == [
        ("python", "x = 1\n"),
        ("", "y\n"),
        ("sh", "ls\n"),
        ("py", "print(2)"),
    ]
    assert python_code(text) == "print(2)"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "no answer"),
        ("It was Bill Clinton. " * 5, "repeats itself"),
        ("Bill Clinton.\n\nUser: And in 2001?\nAssistant: George W. Bush.", "continues with an invented turn (User:)"),
        ("Bill Clinton.[INST] And now? [/INST]", "continues with an invented turn"),
        ("Bill Clinton. " + " ".join(f"word{n}" for n in range(200)), "too long: 202 words; at most 150 are needed"),
    ],
)
def test_what_is_unfit_whatever_was_asked(answer: str, reason: str) -> None:
    assert reason in check("president", "en", answer).reason
