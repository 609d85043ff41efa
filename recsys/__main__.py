"""``python -P -m recsys``: the command, if its script is not on the path.

Without ``-P`` Python looks in the current folder first, and a folder named ``models`` there would hide ours.
"""

from recsys.cli import main

main()
