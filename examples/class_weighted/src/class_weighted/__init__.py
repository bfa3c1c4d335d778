"""Distillation with a custom bilevel loss: cross-entropy inside, class weights outside."""

from .losses import WeightedCrossEntropy as WeightedCrossEntropy, cross_entropy as cross_entropy
from .run import distill_weighted as distill_weighted, measure as measure, one_class as one_class
