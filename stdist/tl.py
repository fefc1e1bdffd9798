"""Tools: the methods."""

from stdist.methods.crescendo import crescendo
from stdist.methods.siid import siid
from stdist.methods.siid.holdout import siid_holdout
from stdist.preprocess.kmeans import kmeans

__all__ = ["crescendo", "kmeans", "siid", "siid_holdout"]
