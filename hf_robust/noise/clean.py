"""`clean`: the labels as they are."""

from .base import ClassNoise, matrix_to


class Clean(ClassNoise):
    """No label is wrong."""

    name = "clean"
    rated = False
    colour = "#000000"
    words = "no wrong labels were added"
    entry = "`label` equals `clean_label`."

    def matrix(self, rate, num_classes):
        """The identity."""
        return matrix_to({}, rate, num_classes)
