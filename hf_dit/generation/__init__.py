"""Many images of one setting: sampled by any number of processes, kept, written in several forms, scored."""
