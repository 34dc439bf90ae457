#!/usr/bin/env python3
"""Reads libspa.a with nm and fails when core reaches outside: an undefined symbol that is not string.h, math.h, assert,
nanopb or core itself, or data that can be written (core has no globals).

Usage: symbols.py path/to/libspa.a [nm]
"""
import re
import subprocess
import sys

STRING = {"memcpy", "memset", "memmove", "memcmp", "memchr", "strlen", "strcmp", "strncmp", "strchr"}
MATH_BASE = {"sqrt", "exp", "log", "log1p", "tanh", "pow", "cos", "sin", "fabs", "floor", "ceil", "rint", "round", "fma",
             "fmin", "fmax", "ldexp", "frexp"}
MATH = MATH_BASE | {name + "f" for name in MATH_BASE}
# __cpu_model: what the compiler's library found out about the processor before main.
COMPILER = {"__assert_fail", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_", "__cpu_model"}
OURS = re.compile(r"(spa|pb)_")

WRITABLE = re.compile(r"\.(data|bss|tdata|tbss)|\*COM\*")
# Constant tables of pointers in position-independent code: written once by the loader, read-only from then on.
RELOCATED = ".data.rel.ro"


def faults(nm_output):
    member = "?"
    n_symbols = 0
    for line in nm_output.splitlines():
        header = re.match(r"(?:Undefined symbols|Symbols) from .*\[(.+)\]:", line)
        if header:
            member = header.group(1)
        columns = [c.strip() for c in line.split("|")]
        if len(columns) != 7 or columns[0] == "Name":
            continue
        name, kind, section = columns[0], columns[2], columns[6]
        n_symbols += 1
        if kind in "Uwv" and name not in STRING | MATH | COMPILER and not OURS.match(name):
            yield f"{member}: needs {name}, which is neither string.h nor math.h"
        if WRITABLE.match(section) and not section.startswith(RELOCATED):
            yield f"{member}: {name} lies in {section}: core has no globals"
    if n_symbols == 0:
        yield "nm names no symbols: is this a static library?"


def main():
    library, nm = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "nm"
    out = subprocess.run([nm, "-f", "sysv", library], check=True, capture_output=True, text=True).stdout
    found = list(faults(out))
    for fault in found:
        print(fault)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
