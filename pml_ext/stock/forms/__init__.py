"""The forms without tuples of PML's stock losses."""

from pytorch_metric_learning import losses

from pml_ext.stock.forms.form import Form
from pml_ext.stock.forms.histograms import FastAP, Histogram
from pml_ext.stock.forms.lse import (
    Circle,
    GeneralizedLiftedStructure,
    LiftedStructure,
    MultiSimilarity,
    NTXent,
    SupCon,
    TupletMargin,
)
from pml_ext.stock.forms.margin import Margin
from pml_ext.stock.forms.nca import NCA
from pml_ext.stock.forms.pairs import Contrastive, IntraPairVariance, SignalToNoiseRatioContrastive
from pml_ext.stock.forms.ranked_list import RankedList
from pml_ext.stock.forms.triplets import TripletMargin

FORMS: dict[type, type[Form]] = {
    losses.CircleLoss: Circle,
    losses.ContrastiveLoss: Contrastive,
    losses.FastAPLoss: FastAP,
    losses.GeneralizedLiftedStructureLoss: GeneralizedLiftedStructure,
    losses.HistogramLoss: Histogram,
    losses.IntraPairVarianceLoss: IntraPairVariance,
    losses.LiftedStructureLoss: LiftedStructure,
    losses.MarginLoss: Margin,
    losses.MultiSimilarityLoss: MultiSimilarity,
    losses.NCALoss: NCA,
    losses.NTXentLoss: NTXent,
    losses.RankedListLoss: RankedList,
    losses.SignalToNoiseRatioContrastiveLoss: SignalToNoiseRatioContrastive,
    losses.SupConLoss: SupCon,
    losses.TripletMarginLoss: TripletMargin,
    losses.TupletMarginLoss: TupletMargin,
}

__all__ = ["FORMS", "Form"]
