"""The ground floor: what the packages of this distribution share."""
