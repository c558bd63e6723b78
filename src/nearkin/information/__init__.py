"""Estimating information, as opposed to maximizing it; the losses that maximize it stand in `losses`."""

from nearkin.information.base import Information
from nearkin.information.labels import label_information

__all__ = ["Information", "label_information"]
