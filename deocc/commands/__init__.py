"""The commands of `deocc` other than those of training, one file or folder each."""
