"""The riddles' checks on right and wrong answers, in other words, in five languages; the classical failures among
them."""

from __future__ import annotations

import pytest

from mixq.measure.suite.checks import check
from mixq.measure.suite.reading import Verdict

RIGHT: dict[str, dict[str, list[str]]] = {
    "shirts": {
        "en": [
            "It would still take 4 hours, because all shirts dry at the same time.",
            "20 shirts take four hours, not 16 hours, if you lay them all out together.",
            "Step 1: 5 shirts take 4 hours to dry.\nStep 2: The sun dries all shirts in parallel.\n"
            "Step 3: So the drying time does not depend on the number of shirts.\n\n**Answer: 4 hours**",
            "The time is the same for any number of shirts: 4 hours. If you only have space for 5 shirts at a "
            "time, it would "
            "take 16 hours instead.",
            "20 shirts take 4 hours to dry. Hung up one after the other they would take 80 hours.",
            "It will take the same amount of time, since the shirts do not share the sun.",
            "One might think that it takes 16 hours. However, the shirts dry simultaneously, so it takes 240 minutes.",
        ],
        "fr": [
            "Les chemises sèchent toutes en même temps, donc 20 chemises mettent aussi 4 heures.",
            "Il faudra quatre heures, et non 16 heures.",
            "5 chemises mettent 4 heures. Le soleil sèche toutes les chemises à la fois. Il faut donc toujours 4 "
            "heures.",
        ],
        "de": [
            "Alle Hemden trocknen gleichzeitig, also brauchen 20 Hemden auch 4 Stunden.",
            "Es dauert genauso lange: vier Stunden.",
            "1. 5 Hemden brauchen 4 Stunden.\n2. Die Sonne trocknet jedes Hemd für sich.\n3. 20 Hemden brauchen 4 "
            "Stunden, "
            "nicht 16 Stunden.",
        ],
        "es": [
            "Las 20 camisas tardan 4 horas, porque se secan todas al mismo tiempo.",
            "Tardarán cuatro horas. Si solo caben 5 a la vez, harían falta cuatro tandas de 4 horas, es decir, 16 "
            "horas.",
            "El tiempo no depende del número de camisas. Por lo tanto, tardan 4 horas.",
        ],
        "it": [
            "Le camicie si asciugano tutte insieme, quindi 20 camicie impiegano sempre 4 ore.",
            "Ci vogliono quattro ore, non 16 ore.",
            "Il tempo non cambia: 4 ore.",
        ],
    },
    "faster": {
        "en": [
            "No.",
            "No, Sam is not faster than Jane.",
            "Jane is faster than Joe, and Joe is faster than Sam, so Jane is faster than Sam. Therefore Sam is "
            "slower than "
            "Jane.",
            "Sam is the slowest of the three.",
            "Jane 1, Joe 2, Sam 3. Sam 3, Jane 1: no, Sam is not faster than Jane.",
            "To find out whether Sam is faster than Jane, we order them: Jane > Joe > Sam. So the answer is no.",
            "Is Sam faster than Jane? By transitivity, Jane is faster than Sam.",
        ],
        "fr": [
            "Non, Sam n'est pas plus rapide que Jane.",
            "Jane est plus rapide que Joe et Joe est plus rapide que Sam, donc Jane est plus rapide que Sam.",
            "Non. Sam est plus lent que Jane.",
        ],
        "de": [
            "Nein, Sam ist nicht schneller als Jane.",
            "Jane ist schneller als Joe, Joe ist schneller als Sam. Also ist Sam langsamer als Jane.",
            "Nein. Jane ist die Schnellste.",
        ],
        "es": [
            "No, Sam no es más rápido que Jane.",
            "Jane es más rápida que Joe, y Joe es más rápido que Sam; por lo tanto, Jane es más rápida que Sam.",
            "No. Sam es más lento que Jane.",
        ],
        "it": [
            "No, Sam non è più veloce di Jane.",
            "Jane è più veloce di Joe, e Joe di Sam. Quindi Jane è più veloce di Sam.",
            "No. Sam è più lento di Jane.",
        ],
    },
    "killers": {
        "en": [
            "There are three killers left in the room.",
            "3",
            "Initially there were three killers. One of them is killed, so two of the original killers are alive. "
            "But the "
            "person who entered is now a killer too, so there are 3 killers in the room.",
            "3 - 1 + 1 = 3, so three killers are left.",
            "There are 3 killers: the 2 who survived and the 1 who came in.",
            "There are four killers in the room: three alive and one dead.",
            "Because two killers survived and the newcomer has become one, three killers are left.",
            "One killer is dead and two are left of the first three. The newcomer has killed, making a total of three.",
        ],
        "fr": [
            "Il reste trois tueurs dans la pièce.",
            "Au départ, il y avait trois tueurs. L'un d'eux est tué. La personne qui est entrée est devenue un "
            "tueur. Il y a "
            "donc 3 tueurs dans la pièce.",
            "Réponse : 3 tueurs, les deux survivants et le nouveau.",
        ],
        "de": [
            "Es sind noch drei Mörder im Zimmer.",
            "Am Anfang waren drei Mörder im Zimmer. Einer wird getötet. Wer ihn getötet hat, ist selbst ein "
            "Mörder. Also "
            "bleiben 3 Mörder.",
            "Antwort: 3 Mörder.",
        ],
        "es": [
            "Quedan tres asesinos en la habitación.",
            "Al principio había tres asesinos. Uno muere. Quien entró también es un asesino. Por lo tanto, quedan "
            "3 asesinos.",
            "Respuesta: 3 asesinos.",
        ],
        "it": [
            "Restano tre assassini nella stanza.",
            "All'inizio c'erano tre assassini. Uno è morto. Chi è entrato è un assassino anche lui. Quindi "
            "rimangono 3 "
            "assassini.",
            "Risposta: 3 assassini.",
        ],
    },
    "marble": {
        "en": [
            "The marble is on the table.",
            "When the cup is turned upside down, the marble rests on the table under it. When the cup is lifted, "
            "the marble "
            "stays behind. So the marble is now on the table, and the cup is in the microwave.",
            "1. The marble is put into the cup.\n2. The cup is placed upside down on the table, so the marble lies "
            "on the "
            "table.\n3. Somebody takes the cup and puts it into the microwave.\n\nThe marble is still on the "
            "table, not in "
            "the microwave.",
            "Because the cup is upside down, the marble falls out of the cup and remains on the table.",
            "The cup is in the microwave, but the marble remained on the table.",
            "Still on the table.",
        ],
        "fr": [
            "La bille est sur la table.",
            "La tasse est dans le micro-ondes, mais la bille est restée sur la table.",
            "Quand on soulève la tasse, la bille tombe de la tasse et reste sur la table.",
        ],
        "de": [
            "Die Murmel liegt auf dem Tisch.",
            "Die Tasse steht in der Mikrowelle, aber die Murmel ist auf dem Tisch geblieben.",
            "Da die Tasse umgedreht ist, bleibt die Murmel auf dem Tisch liegen, nicht in der Tasse.",
        ],
        "es": [
            "La canica está sobre la mesa.",
            "La taza está en el microondas, pero la canica se quedó en la mesa.",
            "Como la taza está boca abajo, la canica se cae de la taza y queda sobre la mesa.",
        ],
        "it": [
            "La biglia è sul tavolo.",
            "La tazza è nel microonde, ma la biglia è rimasta sul tavolo.",
            "Quando la tazza viene sollevata, la biglia resta sul tavolo.",
        ],
    },
    "ball": {
        "en": [
            "John thinks the ball is in the box, and Mark thinks it is in the basket.",
            "John will think that the ball is still in the box, because he did not see Mark put it into the "
            "basket. Mark "
            "believes that it is in the basket, where he put it.",
            "- John: the box\n- Mark: the basket",
            "They each think the ball is where they left it: John in the box, Mark in the basket.",
            "John put the ball in the box before he left for work, so he thinks it is in the box. Mark moved the "
            "ball from the "
            "box to the basket, so he thinks it is in the basket.",
            "Mark knows that the ball is in the basket. John, who left earlier, believes it is in the box, not in "
            "the basket.",
        ],
        "fr": [
            "John pense que le ballon est dans la boîte, et Mark pense qu'il est dans le panier.",
            "John croit que le ballon est dans la boîte, car il est parti avant. Mark croit qu'il est dans le panier.",
        ],
        "de": [
            "John glaubt, dass der Ball in der Kiste ist, und Mark glaubt, dass er im Korb ist.",
            "John denkt, der Ball sei in der Kiste. Mark denkt, der Ball sei im Korb.",
        ],
        "es": [
            "John cree que la pelota está en la caja y Mark cree que está en la cesta.",
            "John piensa que está en la caja. Mark piensa que está en la cesta.",
        ],
        "it": [
            "John pensa che la palla sia nella scatola e Mark pensa che sia nel cesto.",
            "John crede che la palla sia nella scatola. Mark crede che sia nel cesto.",
        ],
    },
}

WRONG: dict[str, dict[str, list[str]]] = {
    "shirts": {
        "en": [
            "It takes 16 hours.",
            "20 hours.",
            "If 5 shirts take 4 hours, then one shirt takes 4/5 = 0.8 hours. So 20 shirts take 20 * 0.8 = 16 hours.",
            "5 shirts take 4 hours. 20 shirts are 4 times as many. Therefore 20 shirts will take 4 * 4 = 16 hours "
            "to dry.",
            "It would take 16 hours, because each batch of 5 shirts takes 4 hours.",
            "That depends on the weather.",
            "5 shirts take 4 hours to dry in the sun.",
            "4 hours. Wait, that is for 5 shirts. For 20 shirts it takes 960 minutes.",
        ],
        "fr": [
            "20 chemises mettent 16 heures à sécher.",
            "5 chemises mettent 4 heures, donc 20 chemises mettent 4 x 4 = 16 heures.",
            "Cela dépend du soleil.",
        ],
        "de": [
            "20 Hemden brauchen 16 Stunden.",
            "5 Hemden brauchen 4 Stunden, also brauchen 20 Hemden viermal so lange: 16 Stunden.",
            "Es dauert zwanzig Stunden.",
        ],
        "es": [
            "20 camisas tardan 16 horas.",
            "5 camisas tardan 4 horas, así que 20 camisas tardan 16 horas.",
            "No lo sé.",
        ],
        "it": [
            "20 camicie impiegano 16 ore.",
            "5 camicie impiegano 4 ore, quindi 20 camicie: 4 * 4 = 16 ore.",
            "Dipende.",
        ],
    },
    "faster": {
        "en": [
            "Yes, Sam is faster than Jane.",
            "Yes.",
            "It cannot be determined from the information given.",
            "Jane is faster than Joe. Joe is faster than Sam. Therefore, Sam is faster than Jane.",
            "Sam and Jane are both runners.",
            "Sam is the fastest.",
            "Jane is slower than Sam.",
            "Jane is not faster than Sam.",
        ],
        "fr": ["Oui, Sam est plus rapide que Jane.", "On ne peut pas le dire, pas assez d'informations.", "Oui."],
        "de": ["Ja, Sam ist schneller als Jane.", "Jane ist langsamer als Sam.", "Ja."],
        "es": ["Sí, Sam es más rápido que Jane.", "Jane es más lenta que Sam.", "Sí."],
        "it": ["Sì, Sam è più veloce di Jane.", "Jane è più lenta di Sam.", "Sì."],
    },
    "killers": {
        "en": [
            "Two killers are left in the room.",
            "There were three killers and one was killed, so there are 2 killers left.",
            "2",
            "There are three killers in the room. Someone kills one of them. 3 - 1 = 2. So two killers are left.",
            "There are four killers in the room.",
            "One killer is left.",
            "I cannot help with that.",
            "Zero killers remain.",
        ],
        "fr": ["Il reste deux tueurs dans la pièce.", "3 - 1 = 2, donc il reste 2 tueurs.", "Aucun."],
        "de": [
            "Es sind noch zwei Mörder im Zimmer.",
            "Am Anfang waren drei Mörder da, einer wurde getötet. Also bleiben 2 Mörder übrig.",
            "Keine Ahnung.",
        ],
        "es": [
            "Quedan dos asesinos en la habitación.",
            "Había tres asesinos y uno murió: 3 - 1 = 2.",
            "Cuatro asesinos.",
        ],
        "it": ["Restano due assassini nella stanza.", "3 - 1 = 2, quindi rimangono 2 assassini.", "Quattro assassini."],
    },
    "marble": {
        "en": [
            "The marble is in the microwave.",
            "The marble is still in the cup, which is now in the microwave.",
            "The marble is inside the cup.",
            "1. The marble is put into the cup.\n2. The cup is placed upside down on the table.\n3. The cup is put "
            "into the "
            "microwave.\n\nSo the marble is now in the microwave, inside the cup.",
            "The marble is under the cup in the microwave.",
            "It was on the table, but now it is inside the microwave.",
            "I do not know that.",
            "The marble is not on the table; it is in the cup.",
        ],
        "fr": [
            "La bille est dans le micro-ondes.",
            "La bille est toujours dans la tasse, qui est dans le micro-ondes.",
            "La bille est à l'intérieur de la tasse.",
        ],
        "de": [
            "Die Murmel ist in der Mikrowelle.",
            "Die Murmel ist immer noch in der Tasse.",
            "Die Murmel liegt unter der Tasse in der Mikrowelle.",
        ],
        "es": [
            "La canica está en el microondas.",
            "La canica sigue dentro de la taza.",
            "La canica está debajo de la taza, en el microondas.",
        ],
        "it": [
            "La biglia è nel microonde.",
            "La biglia è ancora dentro la tazza.",
            "La biglia è nella tazza, nel microonde.",
        ],
    },
    "ball": {
        "en": [
            "They both think that the ball is in the box.",
            "John thinks the ball is in the basket, and Mark thinks it is in the box.",
            "Both John and Mark think the ball is in the basket.",
            "The ball is in the basket.",
            "John thinks the ball is in the box.",
            "John and Mark do not know where the ball is.",
            "John thinks it is in the box, and Mark also thinks it is in the box.",
        ],
        "fr": [
            "Ils pensent tous les deux que le ballon est dans la boîte.",
            "John pense que le ballon est dans le panier, et Mark pense qu'il est dans la boîte.",
        ],
        "de": [
            "Beide glauben, dass der Ball im Korb ist.",
            "John glaubt, dass der Ball im Korb ist, und Mark glaubt, dass er in der Kiste ist.",
        ],
        "es": [
            "Los dos creen que la pelota está en la cesta.",
            "John cree que la pelota está en la cesta y Mark cree que está en la caja.",
        ],
        "it": [
            "Entrambi pensano che la palla sia nella scatola.",
            "John pensa che la palla sia nel cesto e Mark pensa che sia nella scatola.",
        ],
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
        ("shirts", "It takes 16 hours.", "says 16 hours; it is 4"),
        ("killers", "Two killers are left.", "says 2; it is 3"),
        ("faster", "Yes.", "says yes"),
        ("marble", "The marble is in the cup.", "leaves the marble in the cup"),
        ("ball", "John thinks of the box.", "does not say where Mark thinks the ball is; it is the basket"),
    ],
)
def test_reasons(test: str, answer: str, reason: str) -> None:
    assert check(test, "en", answer).reason == reason
