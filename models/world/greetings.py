"""Hello, thanks and goodbye in five languages; each answer keeps the language and the name."""

from __future__ import annotations

from random import Random

from . import people
from .turn import Turn, answers

# ways to say it -> the answer; {n} is the name of the speaker
_ENGLISH = answers("""
Hello! How can I help you?
  Hello|Hi|Hey|Hello there|Hi there|Good morning|Good evening|Good afternoon|Greetings|Hello mixq|Hi mixq|Good day
Hello {n}! How can I help you?
  I am {n}|My name is {n}|Hi, I'm {n}|Hello, I am {n}|Hello, my name is {n}|{n} here
I am fine, thank you. How can I help you?
  How are you|How are you today|How do you do|Are you well|How is it going
You are welcome!
  Thanks|Thank you|Thank you very much|Many thanks|Thanks a lot|Thank you so much|Thanks, mixq
Goodbye!
  Bye|Goodbye|See you|See you later|Bye bye|Until tomorrow|Goodbye, mixq|I have to go
Good night!
  Good night|Sleep well|Good night, mixq
""")
_GERMAN = answers("""
Hallo! Wie kann ich helfen?
  Hallo|Guten Tag|Guten Morgen|Guten Abend|Grüß dich|Hallo mixq|Servus
Hallo {n}! Wie kann ich helfen?
  Ich bin {n}|Ich heiße {n}|Mein Name ist {n}|Hallo, ich bin {n}
Mir geht es gut, danke. Wie kann ich helfen?
  Wie geht es dir|Wie geht's|Wie geht es dir heute|Geht es dir gut
Gern geschehen!
  Danke|Vielen Dank|Danke schön|Danke sehr|Tausend Dank
Auf Wiedersehen!
  Tschüss|Auf Wiedersehen|Bis bald|Bis morgen
""")
_FRENCH = answers("""
Bonjour ! Comment puis-je vous aider ?
  Bonjour|Salut|Bonsoir|Coucou|Bonjour mixq|Bonjour à tous
Bonjour {n} ! Comment puis-je vous aider ?
  Je suis {n}|Je m'appelle {n}|Mon nom est {n}|Bonjour, je suis {n}
Je vais bien, merci. Comment puis-je vous aider ?
  Comment ça va|Ça va|Comment vas-tu|Comment allez-vous
De rien !
  Merci|Merci beaucoup|Mille mercis|Un grand merci
Au revoir !
  Au revoir|À bientôt|À demain|Salut et à bientôt
""")
_SPANISH = answers("""
¡Hola! ¿En qué puedo ayudarte?
  Hola|Buenos días|Buenas tardes|Buenas noches|Hola mixq|Muy buenas
¡Hola {n}! ¿En qué puedo ayudarte?
  Soy {n}|Me llamo {n}|Mi nombre es {n}|Hola, soy {n}
Estoy bien, gracias. ¿En qué puedo ayudarte?
  ¿Cómo estás|¿Qué tal|¿Cómo te va|¿Cómo está usted
¡De nada!
  Gracias|Muchas gracias|Mil gracias|Muchísimas gracias
¡Adiós!
  Adiós|Hasta luego|Hasta mañana|Hasta pronto
""")
_ITALIAN = answers("""
Ciao! Come posso aiutarti?
  Ciao|Buongiorno|Buonasera|Salve|Ciao mixq|Ciao a tutti
Ciao {n}! Come posso aiutarti?
  Sono {n}|Mi chiamo {n}|Il mio nome è {n}|Ciao, sono {n}
Sto bene, grazie. Come posso aiutarti?
  Come stai|Come va|Come sta|Tutto bene
Prego!
  Grazie|Grazie mille|Molte grazie|Tante grazie
Arrivederci!
  Arrivederci|A presto|A domani|Ci vediamo
""")
LANGUAGES = (_ENGLISH, _GERMAN, _FRENCH, _SPANISH, _ITALIAN)
QUESTIONS = ("How", "Are", "Wie", "Geht", "Comment", "Ça va", "¿", "Come", "Tutto")


def _said(rng: Random, words: str) -> str:
    """The words as people type them: with and without capitals and marks."""
    if words.startswith(QUESTIONS):
        said = words + rng.choice(("?", "?", "??", " ?", ""))
    else:
        said = words + rng.choice(("", ".", "!", "!", "!!", " :)", "..."))
    return said[0].lower() + said[1:] if rng.random() < 0.3 else said


def turn(rng: Random) -> Turn:
    language = LANGUAGES[rng.choices(range(5), (40, 15, 15, 15, 15))[0]]
    answer, ways = rng.choice(language)
    words = rng.choice(ways)
    if "{n}" in answer:
        person = people.name(rng)
        words, answer = words.replace("{n}", person), answer.replace("{n}", person)
    return Turn("greetings", _said(rng, words), answer)


def introduction(rng: Random) -> tuple[Turn, Turn]:
    """The user says a name and later asks for it; the question makes sense only after the first turn."""
    person = people.name(rng)
    told = rng.choice(_ENGLISH[1][1]).replace("{n}", person)
    asked = rng.choice(("What is my name?", "Who am I?", "Do you remember my name?"))
    return (
        Turn("greetings", _said(rng, told), _ENGLISH[1][0].replace("{n}", person)),
        Turn("greetings", asked, f"Your name is {person}."),
    )
