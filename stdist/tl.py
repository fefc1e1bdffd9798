"""Tools: the methods."""

from stdist.methods.crescendo import crescendo
from stdist.preprocess.kmeans import kmeans

__all__ = ["crescendo", "kmeans"]
