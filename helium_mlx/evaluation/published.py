"""Which tasks make up the tables on Helium's page, and what the page says.

Kyutai published neither shots nor prompts. The evaluation code for its later models (github.com/kyutai-labs/kairos)
follows OLMES: five shots, and of two forms the better. A row's `form` here is the one that its published figures are
explained by: `docs/evaluate.md` says why.

Source of the figures: huggingface.co/docs/transformers/model_doc/helium, of 2025.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Form = Literal["letters", "cloze"]
FORMS: tuple[Form, ...] = ("letters", "cloze")
SHOTS = 5

# The columns of the page, and by which part of its name a model is taken for one of them.
COLUMNS = {
    "Helium-1 Preview": "helium",
    "SmolLM2 (1.7B)": "smollm2",
    "Gemma-2 (2.6B)": "gemma-2",
    "Llama-3.2 (3B)": "llama-3.2",
    "Qwen2.5 (1.5B)": "qwen2.5",
}


@dataclass(frozen=True)
class PublishedRow:
    """A row of the page: its task and metric in each form that it has, "" for the one form of a question that is open.

    `values` are the page's, in the order of COLUMNS, and empty where it has none.
    """

    name: str
    language: str
    tasks: Mapping[str, tuple[str, str]]
    form: str
    values: tuple[float, ...] = ()

    def forms(self, form: str | None) -> list[str]:
        """Return the forms that are asked in: the row's own by default, one that it has, or both."""
        if form == "both":
            return list(self.tasks)
        return [form] if form is not None and form in self.tasks else [self.form]


def _choice(
    name: str, letters: str, cloze: str, form: Form, values: tuple[float, ...], *,
    language: str = "English", cloze_metric: str = "acc_norm,none",
) -> PublishedRow:  # fmt: skip
    tasks = {"letters": (letters, "acc,none"), "cloze": (cloze, cloze_metric)}
    return PublishedRow(name, language, tasks, form, values)


def _open(name: str, task: str, metric: str, values: tuple[float, ...] = (), *, language: str) -> PublishedRow:
    return PublishedRow(name, language, {"": (task, metric)}, "", values)


_EXACT = "exact_match,remove_whitespace"

ROWS: Sequence[PublishedRow] = (
    _choice("MMLU", "mmlu", "mmlu_continuation", "letters", (51.2, 50.4, 53.1, 56.6, 61.0), cloze_metric="acc,none"),
    _open("NQ", "nq_open", _EXACT, (17.3, 15.1, 17.7, 22.0, 13.1), language="English"),
    _open("TQA", "triviaqa", _EXACT, (47.9, 45.4, 49.9, 53.6, 35.9), language="English"),
    _choice("ARC E", "arc_easy_letters", "arc_easy", "letters", (80.9, 81.8, 81.1, 84.6, 89.7)),
    _choice("ARC C", "arc_challenge_letters", "arc_challenge", "letters", (62.7, 64.7, 66.0, 69.0, 77.2)),
    _choice("OBQA", "openbookqa_letters", "openbookqa", "letters", (63.8, 61.4, 64.6, 68.4, 73.8)),
    _choice("CSQA", "commonsense_qa", "commonsense_qa_cloze", "letters", (65.6, 59.0, 64.4, 65.4, 72.4)),
    _choice("PIQA", "piqa_letters", "piqa", "cloze", (77.4, 77.7, 79.8, 78.9, 76.0)),
    _choice("SIQA", "social_iqa_letters", "social_iqa", "letters", (64.4, 57.5, 61.9, 63.8, 68.7),
            cloze_metric="acc,none"),
    _choice("HS", "hellaswag_letters", "hellaswag", "cloze", (69.7, 73.2, 74.7, 76.9, 67.5)),
    _choice("WG", "winogrande_letters", "winogrande", "cloze", (66.5, 65.6, 71.2, 72.0, 64.8),
            cloze_metric="acc,none"),
    _choice("MMLU", "m_mmlu_de", "m_mmlu_de_cloze", "letters", (45.6, 35.3, 45.0, 47.5, 49.5), language="German"),
    _choice("ARC C", "arc_de_letters", "arc_de", "letters", (56.7, 38.4, 54.7, 58.3, 60.2), language="German"),
    _choice("HS", "hellaswag_de_letters", "hellaswag_de", "cloze", (53.5, 33.9, 53.4, 53.7, 42.8), language="German"),
    _open("MKQA", "mkqa_de", _EXACT, (16.1, 7.1, 18.9, 20.2, 10.4), language="German"),
    _choice("MMLU", "m_mmlu_es", "m_mmlu_es_cloze", "letters", (46.5, 38.9, 46.2, 49.6, 52.8), language="Spanish"),
    _choice("ARC C", "arc_es_letters", "arc_es", "letters", (58.3, 43.2, 58.8, 60.0, 68.1), language="Spanish"),
    _choice("HS", "hellaswag_es_letters", "hellaswag_es", "cloze", (58.6, 40.8, 60.5, 61.1, 51.4), language="Spanish"),
    _open("MKQA", "mkqa_es", _EXACT, (16.0, 7.9, 18.5, 20.6, 10.6), language="Spanish"),
    *(
        _open(f"{a} to {b}", f"flores200_{a}_{b}", "bleu,none", language="FLORES-200")
        for other in ("fr", "de", "es", "it", "pt")
        for a, b in (("en", other), (other, "en"))
    ),
)  # fmt: skip

AVERAGE = (60.7, 59.3, 62.2, 64.7, 63.6)

# The folders of lm-eval that hold its tasks among these: reading all of them takes half a minute.
FOLDERS = (
    "mmlu/default", "mmlu/continuation", "nq_open", "triviaqa", "arc", "openbookqa", "commonsense_qa", "piqa", "siqa",
    "hellaswag", "winogrande", "okapi/mmlu_multilingual", "okapi/arc_multilingual", "okapi/hellaswag_multilingual",
)  # fmt: skip


def published_tasks(form: str | None) -> list[str]:
    """Return the tasks of all rows in a form."""
    return [row.tasks[each][0] for row in ROWS for each in row.forms(form)]


def column_of(model: str, program: str) -> int | None:
    """Return which column of the page a model is, by the last part of its name; None if by that it is none of them.

    What this package opens is compared with Helium's.
    """
    name = model.rstrip("/").rpartition("/")[2].lower()
    found = next((place for place, part in enumerate(COLUMNS.values()) if part in name), None)
    return 0 if found is None and program == "helium_mlx" else found
