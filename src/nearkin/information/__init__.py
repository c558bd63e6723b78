"""Estimating information; what maximizes it stands in `losses` and `objectives`."""

from nearkin.information.base import Information
from nearkin.information.entropy import kozachenko_leonenko, mean_neighbors
from nearkin.information.estimate import mutual_information
from nearkin.information.labels import label_information

__all__ = [
    "Information",
    "kozachenko_leonenko",
    "label_information",
    "mean_neighbors",
    "mutual_information",
]
