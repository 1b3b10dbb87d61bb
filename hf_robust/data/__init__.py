"""Any data set as training and test samples."""
