"""What a person runs besides training, a folder or file each: `deocc.cli` gives each its command."""
