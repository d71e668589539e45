"""Face recognition backbones, one file each."""
