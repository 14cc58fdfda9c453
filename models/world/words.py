"""A small dictionary between five languages, and the days of the week."""

from __future__ import annotations

from random import Random

from .turn import Turn, listed

LANGUAGES = ("English", "German", "French", "Spanish", "Italian")
_TABLE = """
dog Hund chien perro cane|cat Katze chat gato gatto|house Haus maison casa casa|water Wasser eau agua acqua
bread Brot pain pan pane|book Buch livre libro libro|tree Baum arbre árbol albero|sun Sonne soleil sol sole
moon Mond lune luna luna|fish Fisch poisson pez pesce|milk Milch lait leche latte|red rot rouge rojo rosso
green grün vert verde verde|blue blau bleu azul blu|black schwarz noir negro nero|white weiß blanc blanco bianco
yellow gelb jaune amarillo giallo|one eins un uno uno|two zwei deux dos due|three drei trois tres tre
four vier quatre cuatro quattro|five fünf cinq cinco cinque|six sechs six seis sei|seven sieben sept siete sette
eight acht huit ocho otto|nine neun neuf nueve nove|ten zehn dix diez dieci|hand Hand main mano mano
night Nacht nuit noche notte|day Tag jour día giorno|apple Apfel pomme manzana mela|friend Freund ami amigo amico
"""
WORDS = tuple(tuple(row.split()) for line in _TABLE.strip().splitlines() for row in line.split("|"))
INTO = listed(
    "What is '{w}' in {l}?|How do you say '{w}' in {l}?|Translate '{w}' to {l}.|what is {w} in {l}?|"
    "What does '{w}' mean in {l}?|Say '{w}' in {l}.|Translate to {l}: {w}|{w} in {l}?|What is the {l} word for '{w}'?",
    "|",
)
DAYS = (
    listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    listed("Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag"),
    listed("lundi mardi mercredi jeudi vendredi samedi dimanche"),
    listed("lunes martes miércoles jueves viernes sábado domingo"),
    listed("lunedì martedì mercoledì giovedì venerdì sabato domenica"),
)
# (after, before, answer after, answer before)
DAY_PATTERNS = (
    (
        ("What day comes after {}?", "Which day is after {}?", "What is the day after {}?", "Which day follows {}?"),
        ("What day comes before {}?", "Which day is before {}?", "What is the day before {}?"),
        "{1} comes after {0}.",
        "{1} comes before {0}.",
    ),
    (
        ("Welcher Tag kommt nach {}?", "Welcher Tag folgt auf {}?", "Was kommt nach {}?"),
        ("Welcher Tag kommt vor {}?", "Was kommt vor {}?"),
        "Nach {0} kommt {1}.",
        "Vor {0} kommt {1}.",
    ),
    (
        ("Quel jour vient après {} ?", "Quel jour suit {} ?", "Quel est le jour après {} ?"),
        ("Quel jour vient avant {} ?", "Quel est le jour avant {} ?"),
        "Après {0} vient {1}.",
        "Avant {0} vient {1}.",
    ),
    (
        ("¿Qué día viene después de {}?", "¿Qué día sigue a {}?"),
        ("¿Qué día viene antes de {}?", "¿Qué día va antes de {}?"),
        "Después de {0} viene {1}.",
        "Antes de {0} viene {1}.",
    ),
    (
        ("Che giorno viene dopo {}?", "Quale giorno segue {}?"),
        ("Che giorno viene prima di {}?", "Quale giorno precede {}?"),
        "Dopo {0} viene {1}.",
        "Prima di {0} viene {1}.",
    ),
)


def turn(rng: Random) -> Turn:
    if rng.random() < 0.7:
        row = rng.choice(WORDS)
        into = rng.randint(1, 4)
        question = rng.choice(INTO).format(w=row[0], l=LANGUAGES[into])
        return Turn("words", question, f"'{row[0]}' is '{row[into]}' in {LANGUAGES[into]}.")
    language = rng.choices(range(5), (40, 15, 15, 15, 15))[0]
    days, (after, before, says_after, says_before) = DAYS[language], DAY_PATTERNS[language]
    at = rng.randrange(7)
    if rng.random() < 0.55:
        return Turn("words", rng.choice(after).format(days[at]), says_after.format(days[at], days[(at + 1) % 7]))
    return Turn("words", rng.choice(before).format(days[at]), says_before.format(days[at], days[at - 1]))
