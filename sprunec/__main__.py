"""python -m sprunec"""

from sprunec.cli import main

main()
