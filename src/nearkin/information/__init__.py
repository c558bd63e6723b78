"""Estimating information; what maximizes it stands in `losses` and `objectives`."""

from nearkin.information.base import Information
from nearkin.information.labels import label_information

__all__ = ["Information", "label_information"]
