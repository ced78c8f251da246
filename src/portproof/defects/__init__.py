"""Planted defects: a catalogue of ways to get a port wrong, which any port's layers can be searched for places for."""

from portproof.defects.catalogue import CATALOGUE, chosen
from portproof.defects.defect import Defect, Place
from portproof.defects.port import Port

__all__ = ["CATALOGUE", "Defect", "Place", "Port", "chosen"]
