"""Answers as models give them, step by step, with notes and detours: what the checks were not written from."""

from __future__ import annotations

import pytest

from mixq.measure.suite.checks import check
from mixq.measure.suite.reading import Verdict

RIGHT: dict[str, dict[str, list[str]]] = {
    "shirts": {
        "en": [
            "To determine how long it would take for 20 shirts to dry, we need to consider whether the drying "
            "time depends on the number of shirts.\n\n"
            "If 5 shirts take 4 hours to dry in the sun, this means that each shirt takes 4 hours to dry, "
            "since they are all drying at the same time. Therefore, if you lay out 20 shirts in the sun at "
            "the same time, assuming they all have enough space and exposure to the sun, they will also take "
            "4 hours to dry.\n\nSo, 20 shirts will take 4 hours to dry.",
            "The drying time is independent of the number of shirts, as long as there's enough sun and space. "
            "So the answer is: 4 hours.",
            "If you can lay all 20 shirts out in the sun at once, they'll take 4 hours, the same as 5 shirts.",
            "Step 1: Determine the time for one shirt. Since the 5 shirts were drying simultaneously, one "
            "shirt takes 4 hours.\nStep 2: 20 shirts laid out simultaneously take 4 hours.\n\n"
            "Note: this assumes that you have room for all. If not, you would need 4 rounds and 16 hours.",
            "20 shirts would also take **4 hours** to dry, provided that they are all laid out in the sun "
            "simultaneously. It isn't a proportional relationship: you might be tempted to say 16 hours, but "
            "that's a mistake.",
            "It takes 4 hours for 5 shirts, and it takes 4 hours for 20 shirts too.",
        ],
        "de": [
            "Die Trocknungszeit hängt nicht von der Anzahl der Hemden ab, sofern genügend Platz in der Sonne "
            "ist. Daher benötigen auch 20 Hemden 4 Stunden.",
        ],
        "fr": [
            "Le temps de séchage ne dépend pas du nombre de chemises. Si vous étendez 20 chemises en même "
            "temps, elles mettront également 4 heures à sécher.",
        ],
        "es": [
            "El tiempo de secado no depende del número de camisas, siempre que todas reciban el sol a la vez. "
            "Por lo tanto, 20 camisas también tardarán 4 horas.",
        ],
        "it": [
            "Il tempo di asciugatura non dipende dal numero di camicie. Se le 20 camicie vengono stese "
            "contemporaneamente, impiegheranno comunque 4 ore.",
        ],
    },
    "faster": {
        "en": [
            "Based on the information given, Sam is not faster than Jane. Jane is faster than Joe, and Joe is "
            "faster than Sam, so Jane is faster than both Joe and Sam.",
            "No. If Jane is faster than Joe and Joe is faster than Sam, then Jane must be faster than Sam as well.",
            "Let's break it down:\n\n1. Jane > Joe\n2. Joe > Sam\n\n"
            "Therefore Jane > Sam, which means that Sam cannot be faster than Jane.",
            "Sam isn't faster than Jane.",
            "No, he is the slowest one.",
            "Sam is not faster than Jane. In fact, Sam is slower than both Jane and Joe.",
        ],
        "de": [
            "Nein, Sam ist nicht schneller als Jane. Da Jane schneller ist als Joe und Joe schneller ist als "
            "Sam, ist Jane auch schneller als Sam.",
        ],
        "fr": [
            "Non, d'après les informations données, Jane est la plus rapide, suivie de Joe, puis de Sam. Sam "
            "n'est donc pas plus rapide que Jane.",
        ],
        "es": [
            "No, según la información proporcionada, Sam no puede ser más rápido que Jane, ya que Jane es más "
            "rápida que Joe y Joe es más rápido que Sam.",
        ],
        "it": [
            "In base alle informazioni fornite, Sam non è più veloce di Jane, perché Jane è più veloce di Joe "
            "che è più veloce di Sam.",
        ],
    },
    "killers": {
        "en": [
            "Let's break it down step by step:\n\n1. Initially, there are three killers in the room.\n"
            "2. Somebody enters the room and kills one of the killers. This means that there are now two of "
            "the original killers left alive.\n"
            "3. However, the person who entered the room and killed is also a killer.\n"
            "4. Nobody leaves the room.\n\n"
            "So, there are now three killers in the room: the two original ones and the new one.",
            "Three. Two of the original killers plus the person who killed.",
            "After one killer is killed, 2 remain, but the person who entered becomes a killer, so 2 + 1 = 3.",
            "The answer is 3 killers. (If you count the dead one's body, there are 4 people.)",
        ],
        "de": [
            "Schritt 1: Am Anfang sind drei Mörder im Zimmer.\n"
            "Schritt 2: Jemand kommt herein und tötet einen von ihnen, also bleiben zwei der ursprünglichen "
            "Mörder.\n"
            "Schritt 3: Die Person, die hereingekommen ist, hat getötet und ist nun auch ein Mörder.\n"
            "\nAlso sind jetzt drei Mörder im Zimmer.",
        ],
        "fr": [
            "1. Il y a trois tueurs dans la pièce.\n"
            "2. Quelqu'un entre et tue l'un d'eux : il reste deux tueurs du groupe initial.\n"
            "3. La personne qui est entrée est maintenant aussi un tueur.\n\n"
            "Il y a donc trois tueurs dans la pièce.",
        ],
        "es": [
            "Inicialmente hay tres asesinos. Uno es asesinado, por lo que quedan dos. Pero la persona que "
            "entró también es un asesino ahora. Por lo tanto, hay tres asesinos en la habitación.",
        ],
        "it": [
            "Inizialmente ci sono tre assassini. Uno viene ucciso, quindi ne restano due. Ma la persona che è "
            "entrata è ora un assassino. Quindi ci sono tre assassini nella stanza.",
        ],
    },
    "marble": {
        "en": [
            "Let's think step by step:\n\n"
            "1. A small marble is put into a normal cup. At this point the marble is inside the cup.\n"
            "2. The cup is placed upside down on a table. The marble is now trapped between the cup and the "
            "table, resting on the table.\n"
            "3. Someone takes the cup and puts it into the microwave. As the cup was upside down, its opening "
            "faces down, so when it is lifted, the marble stays on the table.\n\n"
            "Therefore, the marble is on the table.",
            "The marble is now on the table where the cup used to be.",
            "When the person lifts the cup, the marble will fall out due to gravity and stay on the table. "
            "The cup goes into the microwave empty.",
            "The marble would be left on the table, because nothing holds it inside the cup when the cup is picked up.",
        ],
        "de": [
            "Wenn die Tasse angehoben wird, bleibt die Murmel auf dem Tisch liegen, da die Öffnung nach unten "
            "zeigt. Die Murmel befindet sich also auf dem Tisch.",
        ],
        "fr": [
            "Lorsque la tasse est retournée, la bille se retrouve sur la table, sous la tasse. Quand "
            "quelqu'un soulève la tasse, la bille reste sur la table. La bille est donc sur la table.",
        ],
        "es": [
            "Cuando se levanta la taza, la canica permanece en la mesa, ya que la abertura está hacia abajo. "
            "Por lo tanto, la canica está en la mesa.",
        ],
        "it": [
            "Quando la tazza viene capovolta, la biglia si trova sul tavolo, sotto la tazza. Quando la tazza "
            "viene sollevata, la biglia rimane sul tavolo. Quindi la biglia è sul tavolo.",
        ],
    },
    "ball": {
        "en": [
            "When John comes back, he'll think the ball is in the box, because that's where he put it before "
            "leaving. Mark will think that the ball is in the basket, because that's where he put it.",
            "John will look for the ball in the box, since he put it there and doesn't know that Mark moved "
            "it. Mark will look for it in the basket.",
            "John: He put the ball in the box, so he thinks it is still in the box.\n"
            "Mark: He put the ball in the basket, so he thinks it is still in the basket.",
            "John thinks that the ball is in the box as that is where he last saw it, while Mark thinks it's "
            "in the basket as that is where he placed it.",
        ],
        "de": [
            "John denkt, dass der Ball noch in der Kiste ist, da er ihn dorthin gelegt hat. Mark hingegen "
            "weiß, dass der Ball im Korb ist, da er ihn dorthin gelegt hat.",
        ],
        "fr": [
            "John pense que le ballon se trouve toujours dans la boîte, puisque c'est là qu'il l'a laissé. "
            "Mark, lui, pense que le ballon se trouve dans le panier.",
        ],
        "es": [
            "John cree que la pelota sigue en la caja, porque ahí la dejó. Mark, en cambio, cree que está en "
            "la cesta, porque él la puso allí.",
        ],
        "it": [
            "John pensa che la palla sia ancora nella scatola, perché è lì che l'ha messa. Mark, invece, "
            "pensa che la palla sia nel cesto, dove l'ha messa lui.",
        ],
    },
    "president": {
        "en": [
            "In 1996, the President of the United States was Bill Clinton. He served two terms from January "
            "20, 1993, to January 20, 2001.",
            "The president of the United States in 1996 was William Jefferson Clinton, commonly known as Bill "
            "Clinton. He was the 42nd president, after George H.W. Bush and before George W. Bush.",
        ],
        "fr": [
            "En 1996, le président des États-Unis était Bill Clinton. Il a été élu pour la première fois en "
            "1992 et réélu en 1996, battant le candidat républicain Bob Dole.",
        ],
        "de": [
            "Im Jahr 1996 war Bill Clinton der Präsident der Vereinigten Staaten. Er folgte auf George H. W. Bush.",
        ],
        "es": [
            "El presidente de los Estados Unidos en 1996 era Bill Clinton, miembro del Partido Demócrata. "
            "Venció a Bob Dole.",
        ],
        "it": [
            "Nel 1996 il presidente degli Stati Uniti era Bill Clinton, in carica dal 1993 al 2001.",
        ],
    },
    "arithmetic": {
        "en": [
            "To solve this expression, we need to follow the order of operations (PEMDAS/BODMAS):\n\n"
            "1. Parentheses: 4 * 2 = 8\n2. Then, from left to right: 25 - 8 = 17\n3. 17 + 3 = 20\n\n"
            "So, 25 - (4 * 2) + 3 = 20.",
            "The result of the expression 25 - (4 * 2) + 3 is 20.",
            "The value of 25 - (4 * 2) + 3 is 25 - 8 + 3, which equals 20.",
        ],
        "de": [
            "Das Ergebnis von 25 - (4 * 2) + 3 ist 20. Zuerst wird die Klammer berechnet: 4 * 2 = 8. Dann 25 "
            "- 8 = 17 und 17 + 3 = 20.",
        ],
        "fr": [
            "Le calcul donne : 25 - 8 + 3 = 20. La réponse est donc 20.",
        ],
        "es": [
            "El resultado de 25 - (4 * 2) + 3 es 20. Primero se resuelve el paréntesis: 4 * 2 = 8.",
        ],
        "it": [
            "Il risultato di 25 - (4 * 2) + 3 è 20.",
        ],
    },
}

WRONG: dict[str, dict[str, list[str]]] = {
    "shirts": {
        "en": [
            "To find out how long 20 shirts take, set up a proportion: 5 shirts / 4 hours = 20 shirts / x "
            "hours. Solving for x, we get x = (20 * 4) / 5 = 16. So, it takes 16 hours for 20 shirts to dry.",
            "If 5 shirts take 4 hours, we can find how long one shirt takes: 4 hours / 5 shirts = 0.8 hours "
            "per shirt. Then 0.8 hours x 20 shirts = 16 hours.",
            "Each shirt takes 4 hours / 5 = 48 minutes. 20 shirts therefore take 20 × 48 minutes = 960 "
            "minutes, or 16 hours.",
            "Since 20 is 4 times 5, it will take 4 times as long. 4 times 4 is 16. The shirts will take 16 "
            "hours to dry.",
            "If one shirt takes 4 hours, 20 shirts take 80 hours.",
            "It takes 1 hour.",
        ],
        "de": [
            "5 Hemden brauchen 4 Stunden. Ein Hemd braucht also 4 / 5 = 0,8 Stunden. 20 Hemden brauchen 20 * "
            "0,8 = 16 Stunden.",
        ],
        "fr": [
            "Pour 20 chemises, il faut 4 fois plus de temps : 4 heures * 4 = 16 heures.",
        ],
        "es": [
            "Como 20 es 4 veces 5, se necesita 4 veces más tiempo, es decir, 4 * 4 = 16 horas.",
        ],
        "it": [
            "20 camicie sono 4 volte 5, quindi ci vuole 4 volte il tempo: 4 * 4 = 16 ore.",
        ],
    },
    "faster": {
        "en": [
            "Yes, Sam is faster than Jane because Joe is faster than Sam.",
            "We don't have enough information to say whether Sam is faster than Jane.",
            "Sam is faster than both Joe and Jane.",
            "Jane and Sam are equally fast.",
        ],
        "de": [
            "Ja, da Joe schneller als Sam ist, ist Sam schneller als Jane.",
        ],
        "fr": [
            "Oui, car Sam est plus rapide que Joe et que Jane.",
        ],
        "es": [
            "Sí, porque Joe es más rápido que Sam.",
        ],
        "it": [
            "Sì, Sam è più veloce.",
        ],
    },
    "killers": {
        "en": [
            "1. There are three killers in the room.\n2. Someone enters and kills one of them.\n"
            "3. Since nobody leaves the room, there are now two killers left in the room.\n\n"
            "Therefore, the answer is two.",
            "There are initially 3 killers. After one is killed, 3 - 1 = 2 killers remain.",
            "There would be 2 killers left, because one of the three was killed.",
            "There are still three people in the room, but only two of them are killers.",
        ],
        "de": [
            "Es bleiben zwei Mörder übrig, da einer der drei getötet wurde.",
        ],
        "fr": [
            "Il reste donc deux tueurs, car l'un des trois a été tué.",
        ],
        "es": [
            "Por lo tanto, quedan dos asesinos vivos en la habitación.",
        ],
        "it": [
            "Quindi nella stanza rimangono due assassini.",
        ],
    },
    "marble": {
        "en": [
            "The marble is still inside the cup. When the cup was placed upside down on the table, the marble "
            "stayed in the cup. When the cup was moved into the microwave, the marble moved with it. So the "
            "marble is now in the microwave.",
            "Since the cup is upside down, the marble is trapped under the cup. When the cup is put into the "
            "microwave, the marble goes with it. Therefore, the marble is in the microwave, under the cup.",
            "The marble remains at the bottom of the cup, inside the microwave.",
            "The marble is in the cup on the table.",
            "The marble fell on the table at first, but it is now inside the microwave.",
        ],
        "de": [
            "Da die Tasse umgedreht in die Mikrowelle gestellt wird, befindet sich die Murmel jetzt in der "
            "Mikrowelle unter der Tasse.",
        ],
        "fr": [
            "La bille se trouve donc dans le micro-ondes, à l'intérieur de la tasse.",
        ],
        "es": [
            "La canica se encuentra ahora dentro del microondas, debajo de la taza.",
        ],
        "it": [
            "La biglia si trova ora all'interno del microonde, sotto la tazza.",
        ],
    },
    "ball": {
        "en": [
            "John thinks that the ball is in the basket, because Mark put it there. Mark thinks that it is in "
            "the basket.",
            "When they come back, both of them will think that the ball is in the basket.",
            "John and Mark both think the ball is in the box.",
            "John thinks the ball is in the box. Mark, who also doesn't know, thinks that it is in the box as well.",
        ],
        "de": [
            "John und Mark denken beide, dass der Ball in der Kiste ist.",
        ],
        "fr": [
            "John et Mark pensent que le ballon est dans le panier.",
        ],
        "es": [
            "John y Mark creen que la pelota está en la caja.",
        ],
        "it": [
            "John e Mark pensano entrambi che la palla sia nel cesto.",
        ],
    },
    "president": {
        "en": [
            "The president of the United States in 1996 was George H. W. Bush. Bill Clinton became president in 2001.",
            "Bill Clinton and Al Gore were presidents of the United States in 1996.",
            "In 1996 the president was Bob Dole, who defeated Bill Clinton.",
        ],
        "fr": [
            "En 1996, le président des États-Unis était George W. Bush.",
        ],
    },
    "arithmetic": {
        "en": [
            "Using the order of operations: 4 * 2 = 8, 8 + 3 = 11, 25 - 11 = 14. So the answer is 14.",
            "25 - (4 * 2) + 3 = 25 - 8 + 3 = 14",
            "The result is 20.5.",
        ],
        "de": [
            "Das Ergebnis ist 45, denn 25 - 4 = 21, 21 * 2 = 42, 42 + 3 = 45.",
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
