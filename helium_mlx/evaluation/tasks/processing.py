"""What the task files compute of data sets' rows."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, cast

from helium_mlx.evaluation.data import load_data

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

# language -> the configuration of FLORES-200, and the name that a prompt has
FLORES = {
    "en": ("eng_Latn", "English"),
    "fr": ("fra_Latn", "French"),
    "de": ("deu_Latn", "German"),
    "es": ("spa_Latn", "Spanish"),
    "it": ("ita_Latn", "Italian"),
    "pt": ("por_Latn", "Portuguese"),
}

Row = Mapping[str, object]


def hellaswag(dataset: "Dataset") -> "Dataset":
    """Return rows with `query`, `choices` and `gold`, cleaned as lm-eval's task of the same name does."""

    def processed(row: Row) -> dict[str, object]:
        activity, before, after = (str(row[name]) for name in ("activity_label", "ctx_a", "ctx_b"))
        return {
            "query": _cleaned(f"{activity}: {before} {after.capitalize()}"),
            "choices": [_cleaned(ending) for ending in cast("list[str]", row["endings"])],
            "gold": int(cast(str, row["label"])),
        }

    return dataset.map(processed)


def arc(dataset: "Dataset") -> "Dataset":
    """Return rows with `choices`, those that there are, and `gold`."""

    def processed(row: Row) -> dict[str, object]:
        options = [cast("str | None", row[f"option_{letter}"]) for letter in "abcde"]
        return {"choices": [text.strip() for text in options if text], "gold": "ABCDE".index(str(row["answer"]))}

    return dataset.map(processed)


def mkqa_de(dataset: "Dataset") -> "Dataset":
    """Return the German questions that have a text for an answer."""
    return _mkqa(dataset, "de")


def mkqa_es(dataset: "Dataset") -> "Dataset":
    """Return the Spanish questions that have a text for an answer."""
    return _mkqa(dataset, "es")


def flores(source: str, target: str, **metadata: object) -> "DatasetDict":
    """Return the splits of two languages beside each other, joined by the sentences' numbers."""
    from datasets import Dataset, DatasetDict

    sides = [load_data("facebook/flores", FLORES[language][0]) for language in (source, target)]
    splits = {}
    for split in ("dev", "devtest"):
        texts, others = ({row["id"]: row["sentence"] for row in cast("Iterable[Row]", side[split])} for side in sides)
        splits[split] = Dataset.from_list(
            [
                {
                    "id": number,
                    "source": text,
                    "target": others[number],
                    "source_language": FLORES[source][1],
                    "target_language": FLORES[target][1],
                }
                for number, text in texts.items()
            ]
        )
    return DatasetDict(splits)


def _mkqa(dataset: "Dataset", language: str) -> "Dataset":
    def processed(row: Row) -> dict[str, object]:
        answers = cast("Mapping[str, list[Mapping[str, object]]]", row["answers"])[language]
        texts = [
            text
            for answer in answers
            for text in [answer["text"], *cast("list[str]", answer.get("aliases") or [])]
            if text
        ]
        return {"question": cast("Mapping[str, str]", row["queries"])[language], "texts": texts}

    return dataset.map(processed, remove_columns=dataset.column_names).filter(lambda row: bool(row["texts"]))


def _cleaned(text: str) -> str:
    """Do what lm-eval's HellaSwag does with the traces of WikiHow."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")
