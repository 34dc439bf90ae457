#!/usr/bin/env python3
"""freeform - rows of free text in one style: the Jargon File (public domain), from Debian's package jargon-text.

    freeform.py FOLDER [--seed 1]

In: the package, by `apt-get download` (kept in FOLDER; needs apt and dpkg-deb, no root). Out: FOLDER/freeform_train.jsonl, some
50,000 tokens, and FOLDER/freeform_held.jsonl, some 8,000, as raw text rows {"text": ...} of about 200 tokens. A row holds whole
paragraphs of the lexicon; rows are drawn at random, so held-out ones come from the same hand but are other entries. The
paragraphs stay out of the repository: nothing here needs them but the measuring.
"""
import gzip
import hashlib
import os
import random
import re
import subprocess
import sys

import programs

PACKAGE = "jargon-text"
TEXT = "usr/share/doc/jargon-text/jargon.txt.gz"
SHA256 = "40dfb4b98191a670a09a183d5798d50f243d23fdbd1495dcc0aca2ce5895ba97"     # of the text, version 4.4.7
ROW_CHARACTERS = 900          # about 200 tokens
TRAIN_ROWS, HELD_ROWS = 280, 46


def fetch(folder):
    unpacked = os.path.join(folder, PACKAGE)
    if not os.path.exists(os.path.join(unpacked, TEXT)):
        for old in os.listdir(folder):
            if old.startswith(PACKAGE + "_"):
                os.remove(os.path.join(folder, old))
        subprocess.run(["apt-get", "-o", "APT::Sandbox::User=", "download", "-qq", PACKAGE], cwd=folder, check=True)
        (deb,) = [name for name in os.listdir(folder) if name.startswith(PACKAGE + "_")]
        subprocess.run(["dpkg-deb", "-x", os.path.join(folder, deb), unpacked], check=True)
    raw = gzip.open(os.path.join(unpacked, TEXT)).read()
    if hashlib.sha256(raw).hexdigest() != SHA256:
        print("freeform: this is another edition of the Jargon File than the one in bench/RESULTS.md", file=sys.stderr)
    return raw.decode("utf-8").replace("\xa0", " ")


def paragraphs(text):
    """The lexicon's paragraphs, lines joined again; what is no sentence (the index, verse, diagrams) is left out."""
    text = text[text.index("\n   :abbrev:"):text.rindex("\nAppendix A. Hacker")]
    for block in re.split(r"\n\s*\n", text):
        line = " ".join(block.split())
        if line.startswith(":") or re.search(r"[.!?)\]”]$", line):
            yield line


def rows(text):
    """An entry's head stays with what it heads: a row that is nearly full ends before the next entry."""
    row = []
    for line in paragraphs(text):
        length = sum(map(len, row))
        if row and (length + len(line) > ROW_CHARACTERS or (line.startswith(":") and length > 0.6 * ROW_CHARACTERS)):
            yield "\n\n".join(row)
            row = []
        row.append(line)


def write(folder, seed=1):
    """Writes both files; returns their paths."""
    os.makedirs(folder, exist_ok=True)
    drawn = [row for row in rows(fetch(folder)) if ROW_CHARACTERS / 2 < len(row) <= ROW_CHARACTERS]
    drawn = random.Random(seed).sample(drawn, TRAIN_ROWS + HELD_ROWS)
    return [programs.write_jsonl(os.path.join(folder, f"freeform_{which}.jsonl"), [{"text": row} for row in some])
            for which, some in (("train", drawn[:TRAIN_ROWS]), ("held", drawn[TRAIN_ROWS:]))]


if __name__ == "__main__":
    programs.make_data(__doc__, write)
