"""The demo model's world: deterministic, right, and with test questions that training never sees."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from random import Random

import pytest

from mixq.models import world
from mixq.models.world import arithmetic, capitals, comparisons, heads_of_state, people


def precedence_value(expression: str) -> int:
    """By recursive descent, independent of the generator's own way of reducing."""
    tokens = re.findall(r"\d+|[-+*/()]", expression)

    def total() -> int:
        value = product()
        while tokens and tokens[0] in "+-":
            value = value + product() if tokens.pop(0) == "+" else value - product()
        return value

    def product() -> int:
        value = atom()
        while tokens and tokens[0] in "*/":
            if tokens.pop(0) == "*":
                value *= atom()
            else:
                value, remainder = divmod(value, atom())
                assert remainder == 0
        return value

    def atom() -> int:
        token = tokens.pop(0)
        if token != "(":
            return int(token)
        value = total()
        assert tokens.pop(0) == ")"
        return value

    value = total()
    assert not tokens
    return value


def turns_of(family: str, count: int, seed: int = 0) -> list[world.Turn]:
    rng = Random(seed)
    generate, _, _ = world.FAMILIES[family]
    return [generate(rng) for _ in range(count)]


def test_the_same_seed_gives_the_same_conversations_and_questions() -> None:
    def text() -> str:
        rng = Random("any")
        return repr([world.conversation(rng) for _ in range(200)] + [world.questions(50, 7)])

    assert text() == text()
    assert world.questions(50, 7) != world.questions(50, 8)


def test_the_shares_of_the_families_are_percentages() -> None:
    for column in (1, 2):
        assert sum(family[column] for family in world.FAMILIES.values()) == 100


def test_another_process_generates_the_same_text() -> None:
    """Nothing depends on the order of a set or on hash randomization."""
    code = "from mixq.models import world; print(world.questions(60, 3))"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": s}
        )
        for s in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout != ""


def test_training_never_contains_a_test_question() -> None:
    """A follow-up needs the turn before it, so it is no test question, whatever its hash."""
    rng = Random(11)
    asked_later = re.compile(r"And of .*\?|What is my name\?|Who am I\?|Do you remember my name\?")
    trained = {turn.user for i in range(20_000) for turn in world.conversation(rng, late=i % 2 == 1).turns}
    assert [user for user in trained if world.is_held_out(user) and not asked_later.fullmatch(user)] == []
    unseen = world.questions(400, 5)
    assert all(world.is_held_out(turn.user) for turn in unseen)
    assert not trained & {turn.user for turn in unseen}


def test_a_sixteenth_of_each_family_is_held_out() -> None:
    for family in world.FAMILIES:
        users = {turn.user for turn in turns_of(family, 8000)}
        share = sum(map(world.is_held_out, users)) / len(users)
        assert 0.03 < share < 0.1, family


def test_questions_are_different_and_balanced_over_the_families() -> None:
    turns = world.questions(400, 9)
    assert len({turn.user for turn in turns}) == 400
    assert {family: sum(t.family == family for t in turns) for family in world.FAMILIES} == dict.fromkeys(
        world.FAMILIES, 40
    )


def test_every_question_has_one_answer() -> None:
    answers: dict[str, str] = {}
    for family in world.FAMILIES:
        for turn in turns_of(family, 5000):
            assert answers.setdefault(turn.user, turn.assistant) == turn.assistant
            assert turn.family == family
            assert turn.assistant == turn.assistant.strip() != ""


def test_arithmetic_steps_all_have_the_value_of_the_expression() -> None:
    for turn in turns_of("arithmetic", 3000):
        steps = turn.assistant.split(" = ")
        assert steps[0] in turn.user
        value = precedence_value(steps[0])
        assert int(steps[-1]) == value
        assert all(precedence_value(step) == value for step in steps[:-1])


def test_arithmetic_shows_the_steps_of_the_documented_example() -> None:
    tokens = ["25", "-", "(", "4", "*", "2", ")", "+", "3"]
    assert arithmetic.worked(tokens) == "25 - (4 * 2) + 3 = 25 - 8 + 3 = 17 + 3 = 20"


@pytest.mark.parametrize("expression", ["3 - 5 + 9", "20 * 20", "7 / 2", "90 + 90", "4 / ( 2 - 2 )"])
def test_arithmetic_refuses_what_is_outside_the_world(expression: str) -> None:
    with pytest.raises(arithmetic.OutOfRange):
        arithmetic.worked(expression.split())


def test_comparisons_follow_from_the_facts_told() -> None:
    pattern = re.compile(r"Is (\w+) (\w+) than (\w+)\?$")
    checked = 0
    for turn in turns_of("comparisons", 3000):
        facts = re.findall(r"(\w+) is (\w+) than (\w+)\.", turn.user)
        asked = pattern.search(turn.user)
        if not facts or not asked or asked[2] != facts[0][1]:
            continue
        below = {first: second for first, _, second in facts}
        reached, at = set(), asked[1]
        while at in below:
            at = below[at]
            reached.add(at)
        assert (": yes, " in turn.assistant) == (asked[3] in reached), turn
        checked += 1
    assert checked > 500


def test_french_comparisons_need_no_elision() -> None:
    for name in people.names(Random(3), 200, consonant=True):
        assert name[0] not in "AEIOUHY"
    assert comparisons.LANGUAGES["fr"].no.startswith("non")


def test_json_answers_parse_and_hold_what_was_told() -> None:
    for turn in turns_of("json", 1000):
        parsed = json.loads(turn.assistant)
        for record in parsed if isinstance(parsed, list) else [parsed]:
            assert list(record) == [key for key in ("name", "age", "city", "job") if key in record]
            assert all(str(value) in turn.user for value in record.values())


def test_python_answers_compile() -> None:
    for turn in turns_of("python", 500):
        if "print?" not in turn.user and "output?" not in turn.user:
            compile(turn.assistant, "answer", "exec")


def test_outputs_are_what_the_programs_print() -> None:
    asked = [turn for turn in turns_of("python", 300) if "print?" in turn.user or "output?" in turn.user]
    assert len(asked) > 20
    for turn in asked[:20]:
        program = turn.user.split("\n", 1)[1]
        ran = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
        assert ran.stdout.rstrip("\n") == turn.assistant


@pytest.mark.parametrize(
    ("title", "year", "person"),
    [
        ("president of the United States", 1996, "Bill Clinton"),
        ("president of the United States", 1963, "John F. Kennedy"),
        ("president of the United States", 1974, "Richard Nixon"),
        ("president of the United States", 2020, "Donald Trump"),
        ("president of France", 1969, "Georges Pompidou"),
        ("president of France", 1995, "Jacques Chirac"),
        ("president of Germany", 2010, "Christian Wulff"),
        ("king of Spain", 2014, "Felipe VI"),
        ("monarch of the United Kingdom", 1990, "Elizabeth II"),
    ],
)
def test_heads_of_state_on_the_first_of_july(title: str, year: int, person: str) -> None:
    office = next(office for office in heads_of_state.OFFICES if office.title == title)
    assert heads_of_state.in_office(office, year) == person


def test_capitals_are_complete_in_five_languages() -> None:
    assert len(capitals.COUNTRIES) == 38
    for row in capitals.COUNTRIES:
        assert len(row) == len(capitals.LANGUAGES)
        assert all(country and capital for country, capital in row)


def test_exactness_forgives_only_outer_space() -> None:
    turn = world.Turn("words", "?", "'dog' is 'Hund' in German.")
    assert world.is_exact(turn, " 'dog' is 'Hund' in German.\n")
    assert not world.is_exact(turn, "'dog' is 'hund' in German.")
    other = world.Turn("json", "?", "{}")
    assert world.score([(turn, turn.assistant), (turn, ""), (other, "{}")]) == {"words": (1, 2), "json": (1, 1)}


def test_the_world_needs_no_torch() -> None:
    code = "import sys; from mixq.models import world; world.questions(20, 1); print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
