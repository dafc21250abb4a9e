#!/usr/bin/env python3
"""Writes tests/abi/test_layout.c: the offset of every field, the size of every struct and the value of every constant of
the contract, as this compiler lays them out (LP64). Run it when a struct has grown; the diff must then only add lines,
apart from the sizes of structs that open with `size`.

    tools/abi/layout.py > tests/abi/test_layout.c
"""
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEADERS = ["base", "plugin", "types", "graph", "kernel", "model", "data", "train", "session", "tokenizer"]


def plain(text):
    """Without comments."""
    return re.sub(r"//[^\n]*", "", re.sub(r"/\*.*?\*/", "", text, flags=re.S))


def fields(body):
    for part in body.split(";"):
        part = " ".join(part.split())
        if not part:
            continue
        pointer = re.search(r"\(\*\s*(\w+)\)\s*\(", part)
        if pointer:
            yield pointer.group(1)
            continue
        first, *rest = part.split(",")
        for name in [first.split()[-1], *rest]:
            yield re.match(r"[\s*]*(\w+)", name).group(1)


def contract():
    structs, constants = [], []
    for header in HEADERS:
        text = plain((ROOT / "abi/apus" / f"{header}.h").read_text())
        for body, name in re.findall(r"typedef struct \w+\s*\{(.*?)\}\s*(\w+);", text, flags=re.S):
            structs.append((header, name, list(fields(body))))
        for body in re.findall(r"\benum\s*\{(.*?)\}", text, flags=re.S):
            constants += [(header, c) for c in re.findall(r"\b(APUS_\w+)\s*(?:=|,|$)", body, flags=re.M)]
        constants += [(header, c) for c in re.findall(r"#define (APUS_MAX_\w+|APUS_LAYOUT_TAG|APUS_ABI_MAJOR|APUS_NONE_ID)\b", text)]
    return structs, constants


def measure(expressions):
    source = "".join(f"#include <apus/{h}.h>\n" for h in HEADERS) + "int main(void) {\n"
    source += "".join(f'printf("%lld\\n", (long long)({e}));\n' for e in expressions) + "return 0; }\n"
    with tempfile.TemporaryDirectory() as folder:
        c, program = pathlib.Path(folder, "m.c"), pathlib.Path(folder, "m")
        c.write_text(source)
        subprocess.run(["cc", "-std=c11", "-I", ROOT / "abi", c, "-o", program], check=True)
        return subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()


def main():
    structs, constants = contract()
    expressions = [c for _, c in constants]
    for _, name, names in structs:
        expressions += [f"offsetof({name}, {f})" for f in names] + [f"sizeof({name})"]
    values = iter(measure(expressions))
    out = sys.stdout.write
    out("""/*
 * The layout of the contract, pinned: offsets, sizes and constants on LP64. Made by tools/abi/layout.py. A line may change
 * only in the size of a struct that opens with `size` and has grown at its end; anything else breaks plugins that exist.
 */
""")
    for header in HEADERS:
        out(f"#include <apus/{header}.h>\n")
    out("\n#include <stdio.h>\n\n#define AT(type, field, offset) _Static_assert(offsetof(type, field) == (offset), #type \".\" #field)\n"
        "#define SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), #type)\n"
        "#define IS(constant, value) _Static_assert((constant) == (value), #constant)\n\n"
        "/* clang-format off */\n_Static_assert(sizeof(void *) == 8 && sizeof(long) == 8, \"these numbers are LP64's\");\n")
    last = None
    for header, c in constants:
        if header != last:
            out(f"\n/* {header}.h */\n")
            last = header
        out(f"IS({c}, {next(values)});\n")
    for header, name, names in structs:
        out("\n")
        for f in names:
            out(f"AT({name}, {f}, {next(values)});\n")
        out(f"SIZE({name}, {next(values)});\n")
    n = sum(len(names) for _, _, names in structs)
    out(f"""
/* clang-format on */
int main(void)
{{
    printf("{n} fields of {len(structs)} structs and {len(constants)} constants lie where they lay\\n");
    return 0;
}}
""")


main()
