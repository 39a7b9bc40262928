"""The fault drill: jobs of the command line are killed and their files damaged, then started again.

    python -m tests.drill --kills=300 --damages=40 --seed=0 --workdir=DIR

Every end is compared, bit by bit, with that of the same job undisturbed. `jobs.py` says which jobs
there are, `children.py` starts and disturbs them, `endings.py` says what a run leaves behind.
"""
