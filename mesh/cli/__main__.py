"""`python -m mesh.cli`: the command where no script is installed."""

from mesh.cli.group import main

main()
