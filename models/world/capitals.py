"""Capitals in five languages: asked forward, backward and as yes or no."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from .turn import Turn

# A row: English; German; French, with "of" before the country; Spanish; Italian, with "of" before the country.
# The capital follows the country after a colon.
_TABLE = """
France:Paris|Frankreich:Paris|de la France:Paris|Francia:París|della Francia:Parigi
Germany:Berlin|Deutschland:Berlin|de l'Allemagne:Berlin|Alemania:Berlín|della Germania:Berlino
Spain:Madrid|Spanien:Madrid|de l'Espagne:Madrid|España:Madrid|della Spagna:Madrid
Italy:Rome|Italien:Rom|de l'Italie:Rome|Italia:Roma|dell'Italia:Roma
Portugal:Lisbon|Portugal:Lissabon|du Portugal:Lisbonne|Portugal:Lisboa|del Portogallo:Lisbona
Austria:Vienna|Österreich:Wien|de l'Autriche:Vienne|Austria:Viena|dell'Austria:Vienna
Belgium:Brussels|Belgien:Brüssel|de la Belgique:Bruxelles|Bélgica:Bruselas|del Belgio:Bruxelles
Denmark:Copenhagen|Dänemark:Kopenhagen|du Danemark:Copenhague|Dinamarca:Copenhague|della Danimarca:Copenaghen
Sweden:Stockholm|Schweden:Stockholm|de la Suède:Stockholm|Suecia:Estocolmo|della Svezia:Stoccolma
Norway:Oslo|Norwegen:Oslo|de la Norvège:Oslo|Noruega:Oslo|della Norvegia:Oslo
Finland:Helsinki|Finnland:Helsinki|de la Finlande:Helsinki|Finlandia:Helsinki|della Finlandia:Helsinki
Poland:Warsaw|Polen:Warschau|de la Pologne:Varsovie|Polonia:Varsovia|della Polonia:Varsavia
Hungary:Budapest|Ungarn:Budapest|de la Hongrie:Budapest|Hungría:Budapest|dell'Ungheria:Budapest
Greece:Athens|Griechenland:Athen|de la Grèce:Athènes|Grecia:Atenas|della Grecia:Atene
Ireland:Dublin|Irland:Dublin|de l'Irlande:Dublin|Irlanda:Dublín|dell'Irlanda:Dublino
Russia:Moscow|Russland:Moskau|de la Russie:Moscou|Rusia:Moscú|della Russia:Mosca
Ukraine:Kyiv|der Ukraine:Kiew|de l'Ukraine:Kiev|Ucrania:Kiev|dell'Ucraina:Kiev
Turkey:Ankara|der Türkei:Ankara|de la Turquie:Ankara|Turquía:Ankara|della Turchia:Ankara
Switzerland:Bern|der Schweiz:Bern|de la Suisse:Berne|Suiza:Berna|della Svizzera:Berna
Romania:Bucharest|Rumänien:Bukarest|de la Roumanie:Bucarest|Rumania:Bucarest|della Romania:Bucarest
Bulgaria:Sofia|Bulgarien:Sofia|de la Bulgarie:Sofia|Bulgaria:Sofía|della Bulgaria:Sofia
Croatia:Zagreb|Kroatien:Zagreb|de la Croatie:Zagreb|Croacia:Zagreb|della Croazia:Zagabria
Egypt:Cairo|Ägypten:Kairo|de l'Égypte:Le Caire|Egipto:El Cairo|dell'Egitto:Il Cairo
Morocco:Rabat|Marokko:Rabat|du Maroc:Rabat|Marruecos:Rabat|del Marocco:Rabat
Kenya:Nairobi|Kenia:Nairobi|du Kenya:Nairobi|Kenia:Nairobi|del Kenya:Nairobi
Canada:Ottawa|Kanada:Ottawa|du Canada:Ottawa|Canadá:Ottawa|del Canada:Ottawa
Mexico:Mexico City|Mexiko:Mexiko-Stadt|du Mexique:Mexico|México:Ciudad de México|del Messico:Città del Messico
Cuba:Havana|Kuba:Havanna|de Cuba:La Havane|Cuba:La Habana|di Cuba:L'Avana
Brazil:Brasília|Brasilien:Brasília|du Brésil:Brasilia|Brasil:Brasilia|del Brasile:Brasilia
Argentina:Buenos Aires|Argentinien:Buenos Aires|de l'Argentine:Buenos Aires|Argentina:Buenos Aires|\
dell'Argentina:Buenos Aires
Peru:Lima|Peru:Lima|du Pérou:Lima|Perú:Lima|del Perù:Lima
Chile:Santiago|Chile:Santiago|du Chili:Santiago|Chile:Santiago|del Cile:Santiago
Colombia:Bogotá|Kolumbien:Bogotá|de la Colombie:Bogota|Colombia:Bogotá|della Colombia:Bogotà
Japan:Tokyo|Japan:Tokio|du Japon:Tokyo|Japón:Tokio|del Giappone:Tokyo
China:Beijing|China:Peking|de la Chine:Pékin|China:Pekín|della Cina:Pechino
India:New Delhi|Indien:Neu-Delhi|de l'Inde:New Delhi|India:Nueva Delhi|dell'India:Nuova Delhi
Australia:Canberra|Australien:Canberra|de l'Australie:Canberra|Australia:Canberra|dell'Australia:Canberra
Thailand:Bangkok|Thailand:Bangkok|de la Thaïlande:Bangkok|Tailandia:Bangkok|della Thailandia:Bangkok
"""


@dataclass(frozen=True, slots=True)
class Language:
    forward: str  # the ways to ask, between |
    answer: str
    check: str  # is B the capital of A?
    yes: str
    no: str
    backward: str = ""
    backward_answer: str = ""


LANGUAGES = (
    Language(
        "What is the capital of {0}?|what is the capital of {0}|What's the capital of {0}?|"
        "Which city is the capital of {0}?|Name the capital of {0}.|Tell me the capital of {0}.|"
        "Do you know the capital of {0}?|capital of {0}?|Capital of {0}|Can you tell me the capital of {0}?",
        "The capital of {0} is {1}.",
        "Is {1} the capital of {0}?|is {1} the capital of {0}",
        "The capital of {0} is {1}, so yes.",
        "The capital of {0} is {1}, so no.",
        "{1} is the capital of which country?|Which country has the capital {1}?|Of which country is {1} the capital?",
        "{1} is the capital of {0}.",
    ),
    Language(
        "Was ist die Hauptstadt von {0}?|Wie heißt die Hauptstadt von {0}?|Nenne die Hauptstadt von {0}.|"
        "Welche Stadt ist die Hauptstadt von {0}?|Hauptstadt von {0}?|Kennst du die Hauptstadt von {0}?",
        "Die Hauptstadt von {0} ist {1}.",
        "Ist {1} die Hauptstadt von {0}?",
        "Die Hauptstadt von {0} ist {1}, also ja.",
        "Die Hauptstadt von {0} ist {1}, also nein.",
    ),
    Language(
        "Quelle est la capitale {0} ?|quelle est la capitale {0}|Donne-moi la capitale {0}.|"
        "Dis-moi quelle est la capitale {0}.|Quelle ville est la capitale {0} ?|Connais-tu la capitale {0} ?",
        "La capitale {0} est {1}.",
        "Est-ce que {1} est la capitale {0} ?",
        "La capitale {0} est {1}, donc oui.",
        "La capitale {0} est {1}, donc non.",
    ),
    Language(
        "¿Cuál es la capital de {0}?|Cuál es la capital de {0}|Dime la capital de {0}.|"
        "¿Qué ciudad es la capital de {0}?|¿Sabes cuál es la capital de {0}?|¿Capital de {0}?",
        "La capital de {0} es {1}.",
        "¿Es {1} la capital de {0}?",
        "La capital de {0} es {1}, así que sí.",
        "La capital de {0} es {1}, así que no.",
    ),
    Language(
        "Qual è la capitale {0}?|qual è la capitale {0}|Dimmi la capitale {0}.|Quale città è la capitale {0}?|"
        "Sai qual è la capitale {0}?|Conosci la capitale {0}?",
        "La capitale {0} è {1}.",
        "{1} è la capitale {0}?",
        "La capitale {0} è {1}, quindi sì.",
        "La capitale {0} è {1}, quindi no.",
    ),
)


COUNTRIES = [  # [country][language] -> (country, capital)
    [(country, capital) for country, capital in (cell.split(":") for cell in line.split("|"))]
    for line in _TABLE.strip().splitlines()
]


def follow_up(rng: Random) -> Turn:
    """What may stand after a question for a capital in English; without that it has no meaning."""
    country, capital = rng.choice(COUNTRIES)[0]
    return Turn("capitals", f"And of {country}?", LANGUAGES[0].answer.format(country, capital))


def turn(rng: Random) -> Turn:
    which = rng.choices(range(5), (40, 15, 15, 15, 15))[0]
    language = LANGUAGES[which]
    country, capital = rng.choice(COUNTRIES)[which]
    kind = rng.random()
    if kind < 0.2:
        is_so = rng.random() < 0.5
        asked = capital if is_so else rng.choice(COUNTRIES)[which][1]
        question = rng.choice(language.check.split("|")).format(country, asked)
        answer = (language.yes if asked == capital else language.no).format(country, capital)
    elif kind < 0.35 and language.backward:
        question = rng.choice(language.backward.split("|")).format(country, capital)
        answer = language.backward_answer.format(country, capital)
    else:
        question = rng.choice(language.forward.split("|")).format(country)
        answer = language.answer.format(country, capital)
    return Turn("capitals", question, answer)
