"""What the paper claims, each with the rule that decides it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sparsetune.reproduce import rules
from sparsetune.reproduce.results import Results


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper.

    Attributes:
        where: Section, table or figure.
        text: The sentence, shortened.
        rule: When it is taken to hold; accuracies and differences are in percent points.
        decide: The rule.
    """

    where: str
    text: str
    rule: str
    decide: Callable[[Results], rules.Decided]

    def decided(self, results: Results) -> rules.Decided | None:
        """Return whether it holds and the numbers that say so; ``None`` where they were not all run."""
        try:
            return self.decide(results)
        except rules.Missing:
            return None


CLAIMS = (
    Claim(
        "Fig. 1",
        "A net with a single filter a layer and the rest zeroed is still much above chance, around 45 %, with resnets.",
        "densenet and WRN-28-4 both reach three times chance",
        rules.one_filter,
    ),
    Claim(
        "Fig. 1",
        "Using 70 % of the filters while zeroing the rest achieves the same performance for densenets.",
        "at most 2 points apart",
        rules.seventy_zeroed,
    ),
    Claim(
        "Fig. 1",
        "There is a gap between fixed random weights and zeroed ones.",
        "random is ahead on average over fractions up to .1, for densenet and WRN-28-4",
        rules.gap,
    ),
    Claim("Fig. 1", "The best performer is densenet.", "highest mean over the fractions", rules.best_model),
    Claim(
        "Fig. 1",
        "AlexNet fails to learn for small fractions or only a few filters a layer.",
        "at most twice chance up to .1 and up to 10 filters",
        rules.alexnet,
    ),
    Claim(
        "Fig. 1",
        "VGG-19 without batch norm does not get better than chance for any of these settings.",
        "at most 1.5 times chance",
        rules.vgg,
    ),
    Claim(
        "Fig. 2",
        "Learning a subset of filters outperforms learning a subset of the weights of each filter.",
        "ahead at more than half of the fractions",
        rules.outputs,
    ),
    Claim(
        "Fig. 3",
        "Performance grows logarithmically with the number of parameters.",
        "R² of the fitted line is .8 or more, for densenet and WRN-28-4",
        rules.logarithmic,
    ),
    Claim(
        "Fig. 3",
        "The slope is larger for recent architectures.",
        "densenet's and WRN-28-4's above AlexNet's and VGG-19's without batch norm",
        rules.slopes,
    ),
    Claim(
        "Fig. 3",
        "Even with the rest zeroed, densenets attain decent performance with less than 100K parameters.",
        "half of the accuracy with all parameters, at .1",
        rules.decent,
    ),
    Claim(
        "Table 1",
        "Learning the classifier alone proves inferior to learning one of the middle blocks.",
        "the best block is ahead for both nets and both data sets",
        rules.fc_inferior,
    ),
    Claim(
        "Table 1",
        "Learning only batch norm gives non-trivial performance (densenet, CIFAR-10).",
        "three times chance",
        rules.norm_alone,
    ),
    Claim(
        "Table 1",
        "For CIFAR-100 batch norm alone is no longer enough.",
        "densenet loses a larger share without its classifier than on CIFAR-10",
        rules.norm_hundred,
    ),
    Claim(
        "Fig. 4",
        "Batch norm makes a big difference for small fractions; from .4 it fades.",
        "mean gain up to .1 and 10 filters is above 0 and above that from .4, for both nets",
        rules.norm_fades,
    ),
    Claim(
        "Fig. 4", "70 % of the parameters induce little or no loss.", "at most 2 points, for both nets", rules.seventy_enough
    ),
    Claim(
        "Fig. 4",
        "densenet achieves the full accuracy with 10 filters a layer.",
        "at most 2 points below",
        rules.ten_filters,
    ),
    Claim(
        "Table 2",
        "WRN-28-10 with 60 % of its filters zeroed achieves almost the baseline.",
        "at most 1.5 points below",
        rules.almost,
    ),
    Claim(
        "Fig. 5",
        "With a single filter a layer densenets outperform WRN by a large gap.",
        "10 points or more, on both data sets",
        rules.single_filter,
    ),
    Claim(
        "Fig. 5",
        "On CIFAR-100 the gap between few parameters and all is larger than on CIFAR-10.",
        "all minus 10 %, for both nets",
        rules.hundred_harder,
    ),
    Claim(
        "Table 3",
        "With 70 % trained 2.3 points are lost, and another 3.1 with 40 %.",
        "at most 4, then at most 5 more, and 10 % is lowest",
        rules.tiny,
    ),
    Claim(
        "Table 4", "An ensemble outperforms its members' mean.", "for each of the five kinds", rules.together
    ),
    Claim(
        "Table 4",
        "Sharing 90 % of the parameters already outperforms training only the classifiers again.",
        "ensembles compared",
        rules.ninety_shared,
    ),
    Claim(
        "Table 4",
        "The full ensemble is best, and sharing .3 is not far below it.",
        "at most 1.5 points",
        rules.full_near,
    ),
    Claim(
        "Fig. 6",
        "Magnitudes after training only 10 % stand out as high.",
        "highest mean |w| over the convolutions",
        rules.ten_high,
    ),
    Claim(
        "Fig. 6",
        "70 % and 100 % are nearly indistinguishable.",
        "mean |w| of a convolution differs by at most 10 % on average",
        rules.seventy_alike,
    ),
)
"""In the paper's order."""
