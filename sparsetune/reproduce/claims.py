"""What the paper claims, each with the rule that decides it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sparsetune.reproduce import rules, rules_full
from sparsetune.reproduce.finding import Decided, Missing
from sparsetune.reproduce.results import Results


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper.

    Attributes:
        where: Section, table or figure.
        text: The sentence, shortened.
        decide: The rule; its docstring says when the claim is taken to hold.
    """

    where: str
    text: str
    decide: Callable[[Results], Decided]

    @property
    def rule(self) -> str:
        """When it is taken to hold; differences are in percent points."""
        return self.decide.__doc__ or ""

    def decided(self, results: Results) -> Decided | None:
        """Return whether it holds and the numbers that say so; ``None`` where they were not all run."""
        try:
            return self.decide(results)
        except Missing:
            return None


CLAIMS = (
    Claim(
        "Fig. 1",
        "A single filter a layer, the rest zeroed, is still much above chance, around 45 %, with resnets.",
        rules.one_filter,
    ),
    Claim(
        "Fig. 1",
        "Using 70 % of the filters while zeroing the rest achieves the same performance for densenets.",
        rules.seventy_zeroed,
    ),
    Claim(
        "Fig. 1",
        "There is a gap between fixed random weights and zeroed ones.",
        rules.gap,
    ),
    Claim("Fig. 1", "The best performer is densenet.", rules.best_model),
    Claim(
        "Fig. 1",
        "AlexNet fails to learn for small fractions or only a few filters a layer.",
        rules.alexnet,
    ),
    Claim(
        "Fig. 1",
        "VGG-19 without batch norm does not get better than chance for any of these settings.",
        rules.vgg,
    ),
    Claim(
        "Fig. 2",
        "Learning a subset of filters outperforms learning a subset of the weights of each filter.",
        rules.outputs,
    ),
    Claim(
        "Fig. 3",
        "Performance grows logarithmically with the number of parameters.",
        rules.logarithmic,
    ),
    Claim(
        "Fig. 3",
        "The slope is larger for recent architectures.",
        rules.slopes,
    ),
    Claim(
        "Fig. 3",
        "Even with the rest zeroed, densenets attain decent performance with less than 100K parameters.",
        rules.decent,
    ),
    Claim(
        "Table 1",
        "In most cases learning the classifier alone proves inferior to learning one of the middle blocks.",
        rules.fc_inferior,
    ),
    Claim(
        "Table 1",
        "Learning only batch norm gives non-trivial performance (densenet, CIFAR-10).",
        rules.norm_alone,
    ),
    Claim(
        "Table 1",
        "For CIFAR-100 batch norm alone is no longer enough.",
        rules.norm_hundred,
    ),
    Claim(
        "Fig. 4",
        "Batch norm makes a big difference for small fractions; from .4 it fades.",
        rules.norm_fades,
    ),
    Claim(
        "Fig. 4",
        "70 % of the parameters induce little or no loss.",
        rules.seventy_enough,
    ),
    Claim(
        "Fig. 4",
        "densenet achieves the full accuracy with 10 filters a layer.",
        rules.ten_filters,
    ),
    Claim(
        "Table 2",
        "WRN-28-10 with 60 % of its filters zeroed achieves almost the baseline.",
        rules_full.almost,
    ),
    Claim(
        "Fig. 5",
        "With a single filter a layer densenets outperform WRN by a large gap.",
        rules_full.single_filter,
    ),
    Claim(
        "Fig. 5",
        "On CIFAR-100 the gap between few parameters and all is larger than on CIFAR-10.",
        rules_full.hundred_harder,
    ),
    Claim(
        "Table 3",
        "With 70 % trained 2.3 points are lost, and another 3.1 with 40 %.",
        rules_full.tiny,
    ),
    Claim("Table 4", "An ensemble outperforms its members' mean.", rules_full.together),
    Claim(
        "Table 4",
        "Sharing 90 % of the parameters already outperforms training only the classifiers again.",
        rules_full.ninety_shared,
    ),
    Claim(
        "Table 4",
        "The full ensemble is best, and sharing .3 is not far below it.",
        rules_full.full_near,
    ),
    Claim(
        "Fig. 6",
        "Magnitudes after training only 10 % stand out as high.",
        rules_full.ten_high,
    ),
    Claim(
        "Fig. 6",
        "70 % and 100 % are nearly indistinguishable.",
        rules_full.seventy_alike,
    ),
)
"""In the paper's order."""
