"""Tools: the methods."""

from stdist.methods.crescendo import crescendo
from stdist.methods.siid import siid
from stdist.methods.siid.align import siid_align
from stdist.methods.siid.choose_factors import siid_choose_factors
from stdist.methods.siid.choose_passes import siid_choose_passes
from stdist.methods.siid.factors import siid_factors
from stdist.methods.siid.holdout import siid_holdout
from stdist.methods.siid.impute import imputed_layer, siid_impute
from stdist.preprocess.kmeans import kmeans

__all__ = [
    "crescendo",
    "imputed_layer",
    "kmeans",
    "siid",
    "siid_align",
    "siid_choose_factors",
    "siid_choose_passes",
    "siid_factors",
    "siid_holdout",
    "siid_impute",
]
