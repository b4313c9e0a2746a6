"""`python -m mesh`: the command `mesh`, where no console script is installed."""

from mesh.cli import main

main()
