"""Writes `data/`: questions of our own in the schemas of the data sets that the published tables use.

    python tests/evaluation/make_data.py

The rows say next to nothing about a model. They are there so that every task loads, asks and counts.
"""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

DATA = Path(__file__).parent / "data"

SUBJECTS = [
    "abstract_algebra",
    "anatomy",
    "astronomy",
    "business_ethics",
    "clinical_knowledge",
    "college_biology",
    "college_chemistry",
    "college_computer_science",
    "college_mathematics",
    "college_medicine",
    "college_physics",
    "computer_security",
    "conceptual_physics",
    "econometrics",
    "electrical_engineering",
    "elementary_mathematics",
    "formal_logic",
    "global_facts",
    "high_school_biology",
    "high_school_chemistry",
    "high_school_computer_science",
    "high_school_european_history",
    "high_school_geography",
    "high_school_government_and_politics",
    "high_school_macroeconomics",
    "high_school_mathematics",
    "high_school_microeconomics",
    "high_school_physics",
    "high_school_psychology",
    "high_school_statistics",
    "high_school_us_history",
    "high_school_world_history",
    "human_aging",
    "human_sexuality",
    "international_law",
    "jurisprudence",
    "logical_fallacies",
    "machine_learning",
    "management",
    "marketing",
    "medical_genetics",
    "miscellaneous",
    "moral_disputes",
    "moral_scenarios",
    "nutrition",
    "philosophy",
    "prehistory",
    "professional_accounting",
    "professional_law",
    "professional_medicine",
    "professional_psychology",
    "public_relations",
    "security_studies",
    "sociology",
    "us_foreign_policy",
    "virology",
    "world_religions",
]

# English, German and Spanish: a country and its capital.
CAPITALS = [
    ("France", "Frankreich", "Francia", "Paris", "Paris", "París"),
    ("Spain", "Spanien", "España", "Madrid", "Madrid", "Madrid"),
    ("Italy", "Italien", "Italia", "Rome", "Rom", "Roma"),
    ("Portugal", "Portugal", "Portugal", "Lisbon", "Lissabon", "Lisboa"),
    ("Austria", "Österreich", "Austria", "Vienna", "Wien", "Viena"),
    ("Germany", "Deutschland", "Alemania", "Berlin", "Berlin", "Berlín"),
    ("Poland", "Polen", "Polonia", "Warsaw", "Warschau", "Varsovia"),
    ("Greece", "Griechenland", "Grecia", "Athens", "Athen", "Atenas"),
    ("Denmark", "Dänemark", "Dinamarca", "Copenhagen", "Kopenhagen", "Copenhague"),
    ("Norway", "Norwegen", "Noruega", "Oslo", "Oslo", "Oslo"),
    ("Sweden", "Schweden", "Suecia", "Stockholm", "Stockholm", "Estocolmo"),
    ("Finland", "Finnland", "Finlandia", "Helsinki", "Helsinki", "Helsinki"),
    ("Hungary", "Ungarn", "Hungría", "Budapest", "Budapest", "Budapest"),
    ("Ireland", "Irland", "Irlanda", "Dublin", "Dublin", "Dublín"),
    ("Belgium", "Belgien", "Bélgica", "Brussels", "Brüssel", "Bruselas"),
    ("Czechia", "Tschechien", "Chequia", "Prague", "Prag", "Praga"),
    ("Romania", "Rumänien", "Rumanía", "Bucharest", "Bukarest", "Bucarest"),
    ("Japan", "Japan", "Japón", "Tokyo", "Tokio", "Tokio"),
    ("China", "China", "China", "Beijing", "Peking", "Pekín"),
    ("Egypt", "Ägypten", "Egipto", "Cairo", "Kairo", "El Cairo"),
    ("Cuba", "Kuba", "Cuba", "Havana", "Havanna", "La Habana"),
    ("Peru", "Peru", "Perú", "Lima", "Lima", "Lima"),
    ("Iceland", "Island", "Islandia", "Reykjavik", "Reykjavík", "Reikiavik"),
    ("Switzerland", "die Schweiz", "Suiza", "Bern", "Bern", "Berna"),
]
ASKED = ("What is the capital of {}", "Was ist die Hauptstadt von {}", "¿Cuál es la capital de {}")

# A beginning, the likely end, and three that are not.
STORIES = [
    ("Lily was hungry.", "She ate a red apple.", "She painted the moon.", "She sold the sea.", "She wore a river."),
    (
        "Tom saw a dog in the park.",
        "The dog wagged its tail.",
        "The dog read a law.",
        "The dog rained.",
        "It was soup.",
    ),
    (
        "It began to rain.",
        "They ran into the house.",
        "They ate the clouds.",
        "They folded the wind.",
        "They were blue.",
    ),
    ("Mom baked a cake.", "It smelled very sweet.", "It drove to school.", "It counted to ten.", "It was a Monday."),
    (
        "The cat climbed a tall tree.",
        "It could not come down.",
        "It wrote a long book.",
        "It became a key.",
        "It rang.",
    ),
    ("Ben lost his ball.", "He looked under the bed.", "He ate his hat.", "He melted the door.", "He was a song."),
    ("The sun went down.", "The children went to bed.", "The bed went to work.", "The sun ate bread.", "It was up."),
    ("Anna was sad.", "Her friend gave her a hug.", "Her shoe gave a speech.", "Her tree ran away.", "She was tin."),
    ("A bird built a nest.", "It laid three small eggs.", "It bought a train.", "It cut the night.", "It spelled."),
    ("Max fell off his bike.", "His knee hurt a little.", "His bike was proud.", "His knee sang.", "He was a cup."),
    ("The water was cold.", "Sam put on his coat.", "Sam drank his coat.", "The water read.", "Sam was a lamp."),
    ("Grandpa told a story.", "Everybody listened to him.", "Everybody was a chair.", "The story slept.", "It flew."),
]

SENTENCES = [
    ("The cat is on the table.", "Le chat est sur la table.", "Die Katze ist auf dem Tisch.",
     "El gato está en la mesa.", "Il gatto è sul tavolo.", "O gato está na mesa."),
    ("We are going home today.", "Nous rentrons à la maison aujourd'hui.", "Wir gehen heute nach Hause.",
     "Hoy volvemos a casa.", "Oggi torniamo a casa.", "Hoje voltamos para casa."),
    ("She reads a long book.", "Elle lit un long livre.", "Sie liest ein langes Buch.",
     "Ella lee un libro largo.", "Lei legge un libro lungo.", "Ela lê um livro longo."),
    ("The water is cold.", "L'eau est froide.", "Das Wasser ist kalt.",
     "El agua está fría.", "L'acqua è fredda.", "A água está fria."),
    ("My brother has two dogs.", "Mon frère a deux chiens.", "Mein Bruder hat zwei Hunde.",
     "Mi hermano tiene dos perros.", "Mio fratello ha due cani.", "O meu irmão tem dois cães."),
    ("It rained in the morning.", "Il a plu le matin.", "Am Morgen hat es geregnet.",
     "Llovió por la mañana.", "La mattina è piovuto.", "De manhã choveu."),
    ("The train arrives at nine.", "Le train arrive à neuf heures.", "Der Zug kommt um neun Uhr an.",
     "El tren llega a las nueve.", "Il treno arriva alle nove.", "O comboio chega às nove."),
    ("Nobody knows his name.", "Personne ne connaît son nom.", "Niemand kennt seinen Namen.",
     "Nadie sabe su nombre.", "Nessuno conosce il suo nome.", "Ninguém sabe o nome dele."),
    ("The children play in the garden.", "Les enfants jouent dans le jardin.", "Die Kinder spielen im Garten.",
     "Los niños juegan en el jardín.", "I bambini giocano in giardino.", "As crianças brincam no jardim."),
    ("This bread is very good.", "Ce pain est très bon.", "Dieses Brot ist sehr gut.",
     "Este pan es muy bueno.", "Questo pane è molto buono.", "Este pão é muito bom."),
    ("I have lost my key.", "J'ai perdu ma clé.", "Ich habe meinen Schlüssel verloren.",
     "He perdido mi llave.", "Ho perso la mia chiave.", "Perdi a minha chave."),
    ("The window was open all night.", "La fenêtre est restée ouverte toute la nuit.",
     "Das Fenster war die ganze Nacht offen.", "La ventana estuvo abierta toda la noche.",
     "La finestra è rimasta aperta tutta la notte.", "A janela ficou aberta toda a noite."),
]  # fmt: skip
FLORES = ("eng_Latn", "fra_Latn", "deu_Latn", "spa_Latn", "ita_Latn", "por_Latn")

# How MKQA numbers its types of answers.
ENTITY, LONG_ANSWER, UNANSWERABLE = 0, 1, 2

Row = Mapping[str, object]
draw = random.Random(0)


def write(place: str, **splits: Sequence[Row]) -> None:
    """Write the splits of a data set's configuration."""
    for split, rows in splits.items():
        path = DATA / place / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def asked(language: int, count: int) -> list[tuple[str, list[str], int]]:
    """Return questions with `count` answers and the place of the right one."""
    found = []
    for row in CAPITALS:
        wrong = draw.sample([other[3 + language] for other in CAPITALS if other is not row], count - 1)
        answers = [*wrong, row[3 + language]]
        draw.shuffle(answers)
        found.append((ASKED[language].format(row[language]), answers, answers.index(row[3 + language])))
    return found


def labelled(count: int, stem: str, **more: object) -> list[Row]:
    """Return rows as ARC, OpenBookQA and CommonsenseQA have them."""
    letters = list("ABCDE"[:count])
    return [
        {
            "id": f"own-{n}", stem: question + "?", "choices": {"text": answers, "label": letters},
            "answerKey": letters[gold], **more,
        }
        for n, (question, answers, gold) in enumerate(asked(0, count))
    ]  # fmt: skip


def endings() -> list[Row]:
    """Return rows as HellaSwag has them."""
    rows = []
    for n, (beginning, *ends) in enumerate(STORIES + STORIES[::-1]):
        shuffled = draw.sample(ends, 4)
        rows.append(
            {
                "ind": n, "activity_label": "Telling a story", "ctx_a": beginning, "ctx_b": "then" if n % 2 else "",
                "ctx": beginning + (" then" if n % 2 else ""), "endings": shuffled, "source_id": f"own~{n}",
                "split": "val", "split_type": "indomain", "label": str(shuffled.index(ends[0])),
            }
        )  # fmt: skip
    return rows


def lettered(language: int, **more: object) -> list[Row]:
    """Return rows as the translated MMLU and ARC have them."""
    return [
        {
            "instruction": question + "?",
            **{f"option_{letter}": text for letter, text in zip("abcd", answers, strict=True)},
            **more, "answer": "ABCD"[gold], "id": f"own/{n}",
        }
        for n, (question, answers, gold) in enumerate(asked(language, 4))
    ]  # fmt: skip


def mkqa() -> list[Row]:
    """Return rows as MKQA has them; the last two have no answer that counts."""
    rows = []
    for n, row in enumerate(CAPITALS):
        answers = {}
        for place, code in enumerate(("en", "de", "es")):
            text = row[3 + place]
            answers[code] = [{"type": ENTITY, "entity": f"Q{n}", "text": text, "aliases": [f"{text} City"] * (n % 2)}]
        queries = {code: ASKED[place].format(row[place]).lower() for place, code in enumerate(("en", "de", "es"))}
        rows.append({"example_id": str(n), "queries": queries, "query": queries["en"], "answers": answers})
    for n, kind in enumerate((LONG_ANSWER, UNANSWERABLE)):
        none = {code: [{"type": kind, "entity": None, "text": None, "aliases": []}] for code in ("en", "de", "es")}
        rows.append({**rows[n], "example_id": f"none-{n}", "answers": none})
    return rows


def trivia() -> list[Row]:
    """Return rows as TriviaQA has them."""
    pages = {"doc_source": [], "filename": [], "title": [], "wiki_context": []}
    results = {"description": [], "filename": [], "rank": [], "title": [], "url": [], "search_context": []}
    return [
        {
            "question": ASKED[0].format(row[0]), "question_id": f"own_{n}", "question_source": "own",
            "entity_pages": pages, "search_results": results,
            "answer": {
                "aliases": [row[3], f"City of {row[3]}"], "normalized_aliases": [row[3].lower()],
                "matched_wiki_entity_name": "", "normalized_matched_wiki_entity_name": "",
                "normalized_value": row[3].lower(), "type": "WikipediaEntity", "value": row[3],
            },
        }
        for n, row in enumerate(CAPITALS)
    ]  # fmt: skip


def main() -> None:
    """Write all of them."""
    subjects: list[list[Row]] = []
    for subject in SUBJECTS:
        drawn = draw.sample(asked(0, 4), 8)
        subjects.append(
            [{"question": q + "?", "subject": subject, "choices": a, "answer": gold} for q, a, gold in drawn]
        )
    write("cais/mmlu/all", dev=[row for rows in subjects for row in rows[:5]],
          test=[row for rows in subjects for row in rows[5:]])  # fmt: skip
    opened = [{"question": ASKED[0].format(row[0]).lower(), "answer": [row[3], row[4]]} for row in CAPITALS]
    write("google-research-datasets/nq_open/default", train=opened[:12], validation=opened[12:] * 2)
    write("mandarjoshi/trivia_qa/rc.nocontext", train=trivia()[:12], validation=trivia()[12:] * 2)
    for name in ("ARC-Easy", "ARC-Challenge"):
        rows = labelled(4, "question")
        write(
            f"allenai/ai2_arc/{name}",
            train=rows[:10],
            validation=rows[10:12],
            test=rows[12:] + labelled(4, "question")[:12],
        )
    rows = labelled(4, "question_stem")
    write(
        "allenai/openbookqa/main",
        train=rows[:10],
        validation=rows[10:12],
        test=rows[12:] + labelled(4, "question_stem")[:12],
    )
    rows = labelled(5, "question", question_concept="capital")
    write("tau/commonsense_qa/default", train=rows[:10], validation=rows[10:])
    goals: list[Row] = [
        {"goal": s[0], "sol1": s[1] if n % 2 else s[2], "sol2": s[2] if n % 2 else s[1], "label": 1 - n % 2}
        for n, s in enumerate(STORIES + STORIES[::-1])
    ]
    write("baber/piqa/default", train=goals[:8], validation=goals[8:])
    social: list[Row] = [
        {"context": s[0], "question": "What happens next?", "label": str(n % 3 + 1),
         **dict(zip(("answerA", "answerB", "answerC"), [*s[2:2 + n % 3], s[1], *s[2 + n % 3:4]], strict=True))}
        for n, s in enumerate(STORIES + STORIES[::-1])
    ]  # fmt: skip
    write("lighteval/siqa/default", train=social[:8], validation=social[8:])
    write("Rowan/hellaswag/default", train=endings()[:8], validation=endings()[8:])
    pairs: list[Row] = [
        {"sentence": f"{a} gave the ball to {b} because _ wanted to {verb} it.", "option1": a, "option2": b,
         "answer": answer}
        for a, b in (("Lily", "Tom"), ("Ben", "Anna"), ("Sam", "Mia"), ("Max", "Zoe"), ("Tim", "Sue"), ("Amy", "Joe"))
        for verb, answer in (("keep", "2"), ("lose", "1"), ("have", "2"), ("share", "1"))
    ]  # fmt: skip
    write("allenai/winogrande/winogrande_xl", train=pairs[:8], validation=pairs[8:])
    for place, code in ((1, "de"), (2, "es")):
        rows = lettered(place)
        write(f"alexandrainst/m_mmlu/{code}", train=rows[:8], val=rows[8:10], test=rows[10:])
        rows = lettered(place, option_e=None)
        write(f"alexandrainst/m_arc/{code}", train=rows[:8], validation=rows[8:10], test=rows[10:])
        write(f"alexandrainst/m_hellaswag/{code}", val=endings())
    write("apple/mkqa/default", train=mkqa())
    for place, code in enumerate(FLORES):
        sentences: list[Row] = [
            {
                "id": n + 1, "URL": "", "domain": "own", "topic": "", "has_image": 0, "has_hyperlink": 0,
                "sentence": s[place],
            }
            for n, s in enumerate(SENTENCES)
        ]  # fmt: skip
        write(f"facebook/flores/{code}", dev=sentences[:5], devtest=sentences[5:])


if __name__ == "__main__":
    main()
