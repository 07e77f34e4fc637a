"""What a comparison of two models found: the figures of each language, and of all."""

from dataclasses import dataclass, field

from helium_mlx.comparison.figures import ComparedModel, LanguageFigures, OwnText
from helium_mlx.comparison.tables import language_table, layer_table
from helium_mlx.errors import one_line, some
from helium_mlx.table import Table, short_repr


@dataclass(frozen=True)
class ComparisonReport(LanguageFigures):
    """The figures over all languages together, those of each, and what was compared.

    `texts` are those that were compared on, and none where they are the package's: all its "text", or its "stories", as
    `package_text` says. `perplexity_unit` is "token", or
    "byte" where the tokenizers differ; `notes` are sentences for the user. `layers` maps groups of modules to the mean
    KL of the reference with those modules taken from the candidate, where that was asked for.
    """

    languages: dict[str, LanguageFigures]
    reference: ComparedModel
    candidate: ComparedModel
    window: int
    windows: int
    texts: tuple[OwnText, ...] = ()
    package_text: str = "text"
    perplexity_unit: str = "token"
    layers: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return short_repr(self, candidate=self.candidate.name, **self._summary())

    def _repr_html_(self) -> str:
        # Names may be long paths; both have to fit.
        tables = self.table().html("; ".join(one_line(line, 160) for line in self.described()))
        return tables + (layer_table(self.layers).html() if self.layers else "")

    @property
    def text(self) -> str:
        """What was compared on, in words of Markdown."""
        if not self.texts:
            return f"the package's own {self.package_text}"
        names = [f"`{one_line(name).replace('`', chr(39))}`" for name in dict.fromkeys(own.name for own in self.texts)]
        return f"text of one's own ({some(names, 5)})"

    @property
    def extent(self) -> str:
        """How much text it was, and which."""
        return f"{self.windows} window{'s' * (self.windows != 1)} of up to {self.window} tokens of {self.text}"

    def described(self) -> list[str]:
        """Return what A is, what B is, and on what they were compared."""
        return [
            f"A: {self.reference.described()}",
            f"B: {self.candidate.described()}",
            f"{self.extent}, each after one BOS; KL(A || B) in nats a token",
        ]

    def table(self, *, wide: bool = False) -> Table:
        """Return a row a language and one for all: the five figures that matter most, or with `wide` all of them."""
        rows = self.languages | ({"all": self} if len(self.languages) > 1 else {})
        return language_table(rows, self.perplexity_unit, wide=wide)
