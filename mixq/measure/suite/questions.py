"""The questions: twelve tests, in the five languages of Mixtral.

Contract: data only. Each question can be judged by its check. Snake is only in English, since programs are the same in
every language.
"""

from __future__ import annotations

from dataclasses import dataclass

LANGUAGES = {"en": "English", "fr": "French", "de": "German", "es": "Spanish", "it": "Italian"}


@dataclass(frozen=True, slots=True)
class Question:
    """A question; an answer that reaches `max_tokens` is wrong."""

    test: str
    language: str
    text: str
    max_tokens: int


LIBRARY = {
    "en": "The town library of Arden was founded in 1892 by a teacher, Clara Moss, with 300 books from her own "
    "shelves. A fire destroyed the house in 1944, and for seven years the books stood in a school. In 1951 "
    "the library moved into the old railway station, where it is today. It lends 30,000 books, and since 2019 "
    "also tools, sewing machines and musical instruments. Most of the work is done by 40 volunteers.",
    "fr": "La bibliothèque municipale d'Arden a été fondée en 1892 par une institutrice, Clara Moss, avec 300 "
    "livres de sa propre maison. Un incendie a détruit le bâtiment en 1944, et pendant sept ans les livres "
    "sont restés dans une école. En 1951, la bibliothèque s'est installée dans l'ancienne gare, où elle se "
    "trouve aujourd'hui. Elle prête 30 000 livres et, depuis 2019, aussi des outils, des machines à coudre et "
    "des instruments de musique. L'essentiel du travail est fait par 40 bénévoles.",
    "de": "Die Stadtbücherei von Arden wurde 1892 von der Lehrerin Clara Moss mit 300 eigenen Büchern gegründet. "
    "Ein Brand zerstörte das Haus 1944, und sieben Jahre lang standen die Bücher in einer Schule. 1951 zog "
    "die Bücherei in den alten Bahnhof, wo sie noch heute ist. Sie verleiht 30.000 Bücher und seit 2019 auch "
    "Werkzeuge, Nähmaschinen und Musikinstrumente. Die meiste Arbeit machen 40 Freiwillige.",
    "es": "La biblioteca municipal de Arden fue fundada en 1892 por una maestra, Clara Moss, con 300 libros de su "
    "propia casa. Un incendio destruyó el edificio en 1944, y durante siete años los libros estuvieron en una "
    "escuela. En 1951 la biblioteca se trasladó a la antigua estación de tren, donde está hoy. Presta 30.000 "
    "libros y, desde 2019, también herramientas, máquinas de coser e instrumentos musicales. La mayor parte "
    "del trabajo la hacen 40 voluntarios.",
    "it": "La biblioteca comunale di Arden fu fondata nel 1892 da una maestra, Clara Moss, con 300 libri di casa "
    "sua. Un incendio distrusse l'edificio nel 1944, e per sette anni i libri rimasero in una scuola. Nel "
    "1951 la biblioteca si trasferì nella vecchia stazione ferroviaria, dove si trova ancora oggi. Presta "
    "30.000 libri e, dal 2019, anche attrezzi, macchine da cucire e strumenti musicali. Gran parte del lavoro "
    "è fatta da 40 volontari.",
}

TEXTS: dict[str, dict[str, str]] = {
    "numbers": {
        "en": "Write a Python program that prints the numbers from 1 to 100.",
        "fr": "Écris un programme Python qui affiche les nombres de 1 à 100.",
        "de": "Schreibe ein Python-Programm, das die Zahlen von 1 bis 100 ausgibt.",
        "es": "Escribe un programa en Python que muestre los números del 1 al 100.",
        "it": "Scrivi un programma Python che stampi i numeri da 1 a 100.",
    },
    "snake": {
        "en": "Write the game Snake in Python with the curses library. Give the whole program in one code block.",
    },
    "letter": {
        "en": "Write a letter of resignation to my boss. I leave at the end of the month.",
        "fr": "Écris une lettre de démission à mon patron. Je pars à la fin du mois.",
        "de": "Schreibe ein Kündigungsschreiben an meinen Chef. Ich gehe zum Ende des Monats.",
        "es": "Escribe una carta de renuncia a mi jefe. Me voy a final de mes.",
        "it": "Scrivi una lettera di dimissioni al mio capo. Me ne vado alla fine del mese.",
    },
    "president": {
        "en": "Who was the president of the United States in 1996?",
        "fr": "Qui était le président des États-Unis en 1996 ?",
        "de": "Wer war 1996 Präsident der Vereinigten Staaten?",
        "es": "¿Quién era el presidente de los Estados Unidos en 1996?",
        "it": "Chi era il presidente degli Stati Uniti nel 1996?",
    },
    "shirts": {
        "en": "If 5 shirts laid out in the sun take 4 hours to dry, how long do 20 shirts take? Explain step by step.",
        "fr": "Si 5 chemises étendues au soleil mettent 4 heures à sécher, combien de temps mettent 20 chemises ? "
        "Explique pas à pas.",
        "de": "Wenn 5 Hemden, die in der Sonne liegen, in 4 Stunden trocknen, wie lange brauchen dann 20 Hemden? "
        "Erkläre es Schritt für Schritt.",
        "es": "Si 5 camisas tendidas al sol tardan 4 horas en secarse, ¿cuánto tardan 20 camisas? Explícalo paso a "
        "paso.",
        "it": "Se 5 camicie stese al sole impiegano 4 ore ad asciugarsi, quanto impiegano 20 camicie? Spiega passo "
        "per passo.",
    },
    "faster": {
        "en": "Jane is faster than Joe. Joe is faster than Sam. Is Sam faster than Jane?",
        "fr": "Jane est plus rapide que Joe. Joe est plus rapide que Sam. Est-ce que Sam est plus rapide que Jane ?",
        "de": "Jane ist schneller als Joe. Joe ist schneller als Sam. Ist Sam schneller als Jane?",
        "es": "Jane es más rápida que Joe. Joe es más rápido que Sam. ¿Es Sam más rápido que Jane?",
        "it": "Jane è più veloce di Joe. Joe è più veloce di Sam. Sam è più veloce di Jane?",
    },
    "arithmetic": {
        "en": "What is 25 - (4 * 2) + 3?",
        "fr": "Combien font 25 - (4 * 2) + 3 ?",
        "de": "Wie viel ist 25 - (4 * 2) + 3?",
        "es": "¿Cuánto es 25 - (4 * 2) + 3?",
        "it": "Quanto fa 25 - (4 * 2) + 3?",
    },
    "killers": {
        "en": "There are three killers in a room. Somebody enters the room and kills one of them. Nobody leaves the "
        "room. How many killers are left in the room? Explain step by step.",
        "fr": "Il y a trois tueurs dans une pièce. Quelqu'un entre dans la pièce et tue l'un d'eux. Personne ne "
        "quitte la pièce. Combien de tueurs reste-t-il dans la pièce ? Explique pas à pas.",
        "de": "In einem Zimmer sind drei Mörder. Jemand kommt in das Zimmer und tötet einen von ihnen. Niemand "
        "verlässt das Zimmer. Wie viele Mörder sind noch im Zimmer? Erkläre es Schritt für Schritt.",
        "es": "Hay tres asesinos en una habitación. Alguien entra en la habitación y mata a uno de ellos. Nadie "
        "sale de la habitación. ¿Cuántos asesinos quedan en la habitación? Explícalo paso a paso.",
        "it": "Ci sono tre assassini in una stanza. Qualcuno entra nella stanza e uccide uno di loro. Nessuno "
        "lascia la stanza. Quanti assassini restano nella stanza? Spiega passo per passo.",
    },
    "bullets": {
        "en": "Summarize this text in exactly three bullet points:\n\n" + LIBRARY["en"],
        "fr": "Résume ce texte en exactement trois points (liste à puces) :\n\n" + LIBRARY["fr"],
        "de": "Fasse diesen Text in genau drei Stichpunkten zusammen:\n\n" + LIBRARY["de"],
        "es": "Resume este texto en exactamente tres puntos (lista con viñetas):\n\n" + LIBRARY["es"],
        "it": "Riassumi questo testo in esattamente tre punti (elenco puntato):\n\n" + LIBRARY["it"],
    },
    "json": {
        "en": 'Make JSON of this, an array with the keys "name", "gender" and "age": There are three people. Two '
        "are male: one is called Mark, another Joe. The third, a woman, is called Sam. The woman is 30, and "
        "both men are 19.",
        "fr": 'Fais-en du JSON, un tableau avec les clés "name", "gender" et "age" : Il y a trois personnes. Deux '
        "sont des hommes : l'un s'appelle Mark, l'autre Joe. La troisième, une femme, s'appelle Sam. La femme "
        "a 30 ans, et les deux hommes ont 19 ans.",
        "de": 'Mache daraus JSON, eine Liste mit den Schlüsseln "name", "gender" und "age": Es gibt drei Personen. '
        "Zwei sind Männer: einer heißt Mark, der andere Joe. Die dritte, eine Frau, heißt Sam. Die Frau ist "
        "30, und beide Männer sind 19.",
        "es": 'Conviértelo en JSON, una lista con las claves "name", "gender" y "age": Hay tres personas. Dos son '
        "hombres: uno se llama Mark, el otro Joe. La tercera, una mujer, se llama Sam. La mujer tiene 30 "
        "años, y los dos hombres tienen 19.",
        "it": 'Fanne JSON, una lista con le chiavi "name", "gender" e "age": Ci sono tre persone. Due sono uomini: '
        "uno si chiama Mark, l'altro Joe. La terza, una donna, si chiama Sam. La donna ha 30 anni, e i due "
        "uomini ne hanno 19.",
    },
    "marble": {
        "en": "A small marble is put into a normal cup, and the cup is placed upside down on a table. Somebody then "
        "takes the cup, without turning it, and puts it into the microwave. Where is the marble now? Explain "
        "step by step.",
        "fr": "Une petite bille est mise dans une tasse normale, et la tasse est posée à l'envers sur une table. "
        "Quelqu'un prend ensuite la tasse, sans la retourner, et la met dans le micro-ondes. Où est la bille "
        "maintenant ? Explique pas à pas.",
        "de": "Eine kleine Murmel wird in eine normale Tasse gelegt, und die Tasse wird umgedreht auf einen Tisch "
        "gestellt. Dann nimmt jemand die Tasse, ohne sie zu drehen, und stellt sie in die Mikrowelle. Wo ist "
        "die Murmel jetzt? Erkläre es Schritt für Schritt.",
        "es": "Se pone una canica pequeña en una taza normal, y la taza se coloca boca abajo sobre una mesa. "
        "Después alguien coge la taza, sin darle la vuelta, y la pone en el microondas. ¿Dónde está ahora la "
        "canica? Explícalo paso a paso.",
        "it": "Una piccola biglia viene messa in una tazza normale, e la tazza viene posata capovolta su un tavolo. "
        "Poi qualcuno prende la tazza, senza girarla, e la mette nel microonde. Dov'è adesso la biglia? "
        "Spiega passo per passo.",
    },
    "ball": {
        "en": "John and Mark are in a room with a ball, a basket and a box. John puts the ball in the box, then "
        "leaves for work. While John is away, Mark puts the ball in the basket, and then leaves for school. "
        "Later they both come back, and neither knows what happened in the room after he left. Where does "
        "each of them think the ball is?",
        "fr": "John et Mark sont dans une pièce avec un ballon, un panier et une boîte. John met le ballon dans la "
        "boîte, puis part au travail. Pendant que John est absent, Mark met le ballon dans le panier, puis "
        "part à l'école. Plus tard, tous deux reviennent, et aucun ne sait ce qui s'est passé après son "
        "départ. Où chacun d'eux pense-t-il que se trouve le ballon ?",
        "de": "John und Mark sind in einem Zimmer mit einem Ball, einem Korb und einer Kiste. John legt den Ball in "
        "die Kiste und geht zur Arbeit. Während John fort ist, legt Mark den Ball in den Korb und geht zur "
        "Schule. Später kommen beide zurück, und keiner weiß, was nach seinem Weggehen geschah. Wo glaubt "
        "jeder der beiden, dass der Ball ist?",
        "es": "John y Mark están en una habitación con una pelota, una cesta y una caja. John pone la pelota en la "
        "caja y se va al trabajo. Mientras John no está, Mark pone la pelota en la cesta y se va a la "
        "escuela. Más tarde vuelven los dos, y ninguno sabe qué pasó después de irse. ¿Dónde cree cada uno de "
        "ellos que está la pelota?",
        "it": "John e Mark sono in una stanza con una palla, un cesto e una scatola. John mette la palla nella "
        "scatola e va al lavoro. Mentre John è via, Mark mette la palla nel cesto e va a scuola. Più tardi "
        "tornano entrambi, e nessuno dei due sa che cosa è successo dopo che se n'è andato. Dove pensa "
        "ciascuno dei due che sia la palla?",
    },
}

MAX_TOKENS = {"snake": 1600, "letter": 700}
USUAL_MAX_TOKENS = 500


def questions(tests: tuple[str, ...] = tuple(TEXTS), languages: tuple[str, ...] = tuple(LANGUAGES)) -> list[Question]:
    """Return the questions of these tests in these languages, test by test."""
    return [
        Question(test, language, TEXTS[test][language], MAX_TOKENS.get(test, USUAL_MAX_TOKENS))
        for test in TEXTS
        if test in tests
        for language in LANGUAGES
        if language in languages and language in TEXTS[test]
    ]
