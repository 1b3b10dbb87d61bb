"""The ground floor: what the packages of this distribution share."""

__version__ = "0.2.0"  # of the distribution, and of each of its packages
