#!/usr/bin/env python3
"""Man pages and shell completions of programs, made of the option table that also prints their --help (cli/options.h, --describe).

Usage: pages.py OUT VERSION DATE PROGRAM...       OUT/man1/*.1  OUT/bash/*  OUT/zsh/_*  OUT/fish/*.fish
"""
import pathlib
import re
import subprocess
import sys
import textwrap


class Option:
    def __init__(self, name, brief, arg, kind, about):
        self.name, self.brief, self.arg, self.kind, self.about = name, brief, arg, kind, about
        self.words = arg.split("|") if kind == "choice" else [w for w in arg.split("|") if w.islower()]

    def takes(self):
        """What its value is, for a completion: nothing, words, file, folder or other."""
        if self.kind == "flag":
            return "nothing"
        if re.search(r"\bFILE\b", self.arg):
            return "file"
        if re.search(r"\bDIR\b", self.arg):
            return "folder"
        return "words" if self.words else "other"

    def forms(self):
        return (["-" + self.brief] if self.brief else []) + ["--" + self.name]


class Command:
    def __init__(self, program, words):
        self.verbs, self.options, self.name, self.positional, self.about = [], [], " ".join(words), "", ""
        out = subprocess.run([program, *words[1:], "--describe"], check=True, capture_output=True, text=True).stdout
        for line in out.splitlines():
            kind, *fields = [re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], f) for f in line.split("\t")]
            if kind == "command":
                self.name, self.positional, self.about = fields
            elif kind == "option":
                self.options.append(Option(*fields))
            elif kind == "verb":
                self.verbs.append((fields[0], first_sentence(fields[1])))
            else:
                raise SystemExit(f"pages.py: {program} --describe says '{line}'")
        self.options.append(Option("help", "h", "", "flag", "this text"))
        if words == ["spa"]:
            self.about = "A large base model stays frozen in the cloud; your small plugin stays on this machine."
            self.options.append(Option("version", "", "", "flag", "print the version and exit"))


def first_sentence(text):
    return re.split(r"(?<=[a-z])[.;:](?:\s|$)", " ".join(text.split()))[0]


def lower(text):
    return text[:1].lower() + text[1:]


# ---- man ----

def paragraph(text):
    """Text as lines of a page, none too long and none a request."""
    return [roff(line) for line in textwrap.wrap(" ".join(text.split()), 64, break_long_words=False, break_on_hyphens=False)]


def roff(text):
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga").replace("^", "\\(ha").replace("~", "\\(ti")
    return re.sub(r"^\.", r"\\&.", text)


def man(command, pages, version, date):
    name = command.name.replace(" ", "-")
    lines = [f'.TH {name.upper()} 1 "{date}" "spa {version}" "User Commands"', ".SH NAME",
             *paragraph(f"{name} - {pages[command.name]}"), ".SH SYNOPSIS"]
    if command.verbs and not command.positional and command.name == "spa":
        lines += [f".B {roff(command.name)}", "\\fIVERB\\fR [\\fIarguments\\fR]"]
    else:
        positional = f"\\fI{roff(command.positional)}\\fR " if command.positional else ""
        lines += [f".B {roff(command.name)}", f"{positional}[\\fIoptions\\fR]"]
    lines += [".SH DESCRIPTION", *paragraph(command.about)]
    if command.verbs:
        lines.append(".SH COMMANDS")
        for verb, about in command.verbs:
            lines += [".TP", f"\\fB{roff(command.name)} {roff(verb)}\\fR", *paragraph(f"{about}; see {name}-{verb}(1)")]
    lines.append(".SH OPTIONS")
    for option in command.options:
        forms = ", ".join(f"\\fB{roff(form)}\\fR" for form in option.forms())
        lines += [".TP", forms + (f" \\fI{roff(option.arg)}\\fR" if option.arg else ""), *paragraph(option.about)]
    variables = {word for option in command.options for word in re.findall(r"\bSPA_[A-Z_]+\b", option.about)}
    if variables:
        lines.append(".SH ENVIRONMENT")
        for word in sorted(variables):
            users = " and ".join(f"\\fB\\-\\-{roff(o.name)}\\fR" for o in command.options if word in o.about)
            lines += [".TP", f".B {word}", f"stands for {users} where that is not given"]
    lines += [".SH EXIT STATUS", *paragraph("0 when all went well, 2 when the command line cannot be understood, another number "
              "when something failed; then one sentence on standard error says what, and what to do."), ".SH SEE ALSO"]
    others = sorted(n.replace(" ", "-") for n in pages if n != command.name)
    lines += [f".BR {roff(other)} (1){',' if other != others[-1] else ''}" for other in others]
    return "\n".join(lines) + "\n"


# ---- bash ----

def quoted(text):
    return "'" + text.replace("'", "'\\''") + "'"


def bash_case(command):
    """What decides `words`, `files`, `folders` or `none` for one command."""
    lines = [f"        options={quoted(' '.join(f for o in command.options for f in o.forms()))}"]
    if command.positional:
        lines.append("        files=1")
    lines.append('        case $prev in')
    for option in command.options:
        does = {"nothing": None, "words": f"words={quoted(' '.join(option.words))} value=1", "file": "files=1 value=1", "folder": "folders=1 value=1",
                "other": "value=1"}[option.takes()]
        if does:
            lines.append(f"        {'|'.join(option.forms())}) {'files= ' if 'files' not in does else ''}{does} ;;")
    return lines + ["        esac"]


def bash(program, commands):
    lines = [f"# Completion of {program} for bash.",
             f"_{program.replace('-', '_')}()", "{", "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} options= words= files= folders= value=",
             "    # Words are split at '=' as well: --name=value is three of them.",
             "    if [[ $cur == = ]]; then", "        cur=", "    elif [[ $prev == = ]]; then", "        prev=${COMP_WORDS[COMP_CWORD-2]}", "    fi",
             "    case ${COMP_WORDS[1]} in"]
    for command in commands[1:]:
        lines += [f"    {command.name.split()[1]})", *bash_case(command), "        ;;"]
    lines += ["    *)", *bash_case(commands[0]),
              *([f"        [[ $COMP_CWORD == 1 ]] && words={quoted(' '.join(verb for verb, _ in commands[0].verbs))}"] if commands[0].verbs else []),
              "        ;;", "    esac", "    COMPREPLY=()",
              "    if [[ $cur == -* && -z $value ]]; then", '        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")',
              "    elif [[ -n $words ]]; then", '        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")',
              "    elif [[ -n $files || -n $folders ]]; then", "        compopt -o filenames 2>/dev/null",
              '        mapfile -t COMPREPLY < <(compgen "-${files:+f}${folders:+d}" -- "$cur")',
              "    fi", "}", f"complete -F _{program.replace('-', '_')} {program}"]
    return "\n".join(lines) + "\n"


# ---- zsh ----

def zsh_text(text):
    return re.sub(r"([\\\[\]:])", r"\\\1", text).replace("'", "'\\''")


def zsh_option(option):
    value = {"nothing": "", "words": f":{zsh_text(option.arg.split('|')[0])}:({' '.join(option.words)})", "file": ":file:_files",
             "folder": ":folder:_files -/", "other": f":{zsh_text(option.arg)}: "}[option.takes()]
    again = "*" if option.kind == "list" else "(" + " ".join(option.forms()) + ")"
    long = f"--{option.name}{'=' if value else ''}"
    forms = [long] + ([f"-{option.brief}"] if option.brief else [])
    return [f"'{again}{form}[{zsh_text(option.about)}]{value}'" for form in forms]


def zsh_arguments(command, indent):
    specs = [spec for option in command.options for spec in zsh_option(option)]
    if command.positional:
        specs.append("'*:file:_files'")
    return [indent + "_arguments \\", *[f"{indent}    {spec} \\" for spec in specs[:-1]], f"{indent}    {specs[-1]}"]


def zsh(program, commands):
    function = f"_{program}"
    lines = [f"#compdef {program}", f"# Completion of {program} for zsh.", f"{function}() {{"]
    if commands[0].verbs:
        lines += ["    if (( CURRENT == 2 )) && [[ $words[2] != -* ]]; then", "        local -a verbs", "        verbs=("]
        lines += [f"            '{zsh_text(verb)}:{zsh_text(about)}'" for verb, about in commands[0].verbs]
        lines += ["        )", "        _describe command verbs", "        return", "    fi"]
    lines.append("    case $words[2] in")
    for command in commands[1:]:
        lines += [f"    {command.name.split()[1]})", "        shift words; (( CURRENT-- ))", *zsh_arguments(command, "        "), "        ;;"]
    lines += ["    *)", *zsh_arguments(commands[0], "        "), "        ;;", "    esac", "}", f'{function} "$@"']
    return "\n".join(lines) + "\n"


# ---- fish ----

def fish_text(text):
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def fish(program, commands):
    verbs = [verb for verb, _ in commands[0].verbs]
    none = f"not __fish_seen_subcommand_from {' '.join(verbs)}" if verbs else "true"
    lines = [f"# Completion of {program} for fish.", f"complete -c {program} -f"]
    lines += [f"complete -c {program} -n __fish_use_subcommand -a {verb} -d {fish_text(about)}" for verb, about in commands[0].verbs]
    for command in commands:
        when = none if command is commands[0] else f"__fish_seen_subcommand_from {command.name.split()[1]}"
        if command.positional:
            lines.append(f"complete -c {program} -n {fish_text(when)} -F")
        for option in command.options:
            value = {"nothing": "", "words": f" -x -a {fish_text(' '.join(option.words))}", "file": " -r -F", "folder": " -x -a '(__fish_complete_directories)'",
                     "other": " -x"}[option.takes()]
            brief = f" -{'s' if len(option.brief) == 1 else 'o'} {option.brief}" if option.brief else ""
            lines.append(f"complete -c {program} -n {fish_text(when)} -l {option.name}{brief}{value} -d {fish_text(option.about)}")
    return "\n".join(lines) + "\n"


def main():
    out, version, date, *programs = sys.argv[1:]
    out = pathlib.Path(out)
    families, pages = [], {}
    for path in programs:
        program = pathlib.Path(path).name
        top = Command(path, [program])
        family = [top] + [Command(path, [program, verb]) for verb, _ in top.verbs]
        pages[top.name] = lower(first_sentence(top.about)) if top.name != "spa" else "a large language model that knows you, with a plugin that stays on your device"
        pages.update({f"{program} {verb}": lower(about) for verb, about in top.verbs})
        families.append((program, family))
    for folder in ("man1", "bash", "zsh", "fish"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for program, family in families:
        for command in family:
            (out / "man1" / f"{command.name.replace(' ', '-')}.1").write_text(man(command, pages, version, date))
        (out / "bash" / program).write_text(bash(program, family))
        (out / "zsh" / f"_{program}").write_text(zsh(program, family))
        (out / "fish" / f"{program}.fish").write_text(fish(program, family))


if __name__ == "__main__":
    main()
