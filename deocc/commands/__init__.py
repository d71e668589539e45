"""Commands of `deocc` other than training, one file or folder each: arguments, call, output."""
