"""`python -m luthier`, which is what torchrun starts."""

from luthier.cli.main import main

main()
