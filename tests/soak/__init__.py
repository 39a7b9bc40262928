"""The soak: a training that goes on, while its memory, files, disk and speed are measured.

    python -m tests.soak --minutes=30 --workdir=DIR --figure=docs/soak.png

says of each whether it stays flat.
"""
