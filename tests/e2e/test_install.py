"""cmake --install: programs that run from there, a library that others build on, man pages and completions that follow the option table."""
import json
import os
import re
import shutil
import subprocess

import pytest

import system

CONSUMER = system.EXAMPLES / "libspa"


def run(*words, **options):
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, env={**system.environment, "LC_ALL": "C.UTF-8"}, **options)


def well(*words, **options):
    done = run(*words, **options)
    assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stdout}{done.stderr}"
    return done.stdout


def tool(name):
    if not shutil.which(name):
        pytest.skip(f"THERE IS NO {name.upper()}, so nobody has looked at what is made for it: run tools/setup")
    return name


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    if not (system.BUILD / "pages" / "done").exists():
        pytest.skip("THIS BUILD INSTALLS NOTHING (SPA_INSTALL=OFF, or with sanitizers)")
    folder = tmp_path_factory.mktemp("install") / "prefix"
    well("cmake", "--install", system.BUILD, "--prefix", folder)
    return folder


@pytest.fixture(scope="module")
def lib(prefix):
    return next(prefix.rglob("libspa.so")).parent


def verbs(program):
    return re.findall(r"^verb\t(\S+)", well(program, "--describe"), re.M)


def commands():
    """Every command line that has options: its words."""
    return [[p.name, *verb] for p in (system.SPA, system.SPA_CLOUD) for verb in [[], *([v] for v in verbs(p))]]


def options_of_help(words):
    """Long options as --help lists them."""
    return re.findall(r"^  (?:-[\w-]+, )?--([\w-]+)", well(system.BUILD / words[0], *words[1:], "--help"), re.M)


# ---- programs ----

def test_install_programs_run_from_there(prefix):
    for program in ("spa", "spa-cloud"):
        assert re.fullmatch(rf"{program} \d+\.\d+\.\d+\n", well(prefix / "bin" / program, "--version"))


def test_install_says_nothing_of_the_machine_it_was_built_on(prefix):
    for path in prefix.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.suffix in (".pc", ".cmake", ".1", ".fish", ".json", ""):
            if path.parent.name != "bin":
                assert str(system.BUILD) not in path.read_text(), path


# ---- a consumer, both ways ----

def answers_as_inspect(consumer, plugin, **options):
    said = well(consumer, plugin, **options)
    inspected = json.loads(system.good(system.spa("inspect", "--json", plugin)).stdout)
    numbers, rank, width = map(int, re.findall(r"\d+", said))
    assert (rank, width) == (inspected["r"], inspected["d"]) and 0 < numbers <= inspected["parameters"]
    missing = run(consumer, plugin.parent / "nothing", **options)
    assert missing.returncode == 1 and "nothing" in missing.stderr


def test_install_consumer_by_pkg_config(prefix, lib, golden_plugins, tmp_path):
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "spa"], capture_output=True, text=True,
                           env={**os.environ, "PKG_CONFIG_PATH": str(lib / "pkgconfig")}).stdout.split()
    well("cc", "-std=c11", "-Wall", "-Wextra", "-Werror", CONSUMER / "count.c", "-o", tmp_path / "count", *flags, f"-Wl,-rpath,{lib}")
    answers_as_inspect(tmp_path / "count", golden_plugins["add"])


def test_install_consumer_by_cmake(prefix, golden_plugins, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(prefix, moved, symlinks=True)   # the files find each other wherever they are
    well("cmake", "-S", CONSUMER, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={moved}")
    well("cmake", "--build", tmp_path / "build")
    answers_as_inspect(tmp_path / "build" / "count", golden_plugins["add"])


def test_install_core_alone_is_static(prefix, lib, tmp_path):
    (tmp_path / "core.c").write_text('#include <spa/ladder.h>\n#include <spa/wire.h>\n#include <stdio.h>\n'
                                     'int main(void) { return puts(spa_err_name(SPA_OK)) < 0; }\n')
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "spa-core"], capture_output=True, text=True,
                           env={**os.environ, "PKG_CONFIG_PATH": str(lib / "pkgconfig")}).stdout.split()
    well("cc", "-std=c11", "-Wall", "-Werror", tmp_path / "core.c", "-o", tmp_path / "core", *flags)
    assert well(tmp_path / "core") == "OK\n"
    assert "libspa" not in well("ldd", tmp_path / "core")


def test_install_each_header_compiles_alone(prefix, tmp_path):
    headers = sorted(path.name for path in (prefix / "include" / "spa").iterdir())
    assert 10 < len(headers) < 20, "a small set"
    for header in headers:
        (tmp_path / "one.c").write_text(f"#include <spa/{header}>\n")
        well("cc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I", prefix / "include", tmp_path / "one.c")


def test_install_library_shows_only_its_own_names(lib):
    names = [line.split()[-1] for line in well("nm", "-D", "--defined-only", lib / "libspa.so").splitlines()]
    assert len(names) > 50 and all(name.startswith("spa_") for name in names)


# ---- pages and completions ----

def test_install_help_man_and_completions_name_the_same_options(prefix):
    bash, zsh, fish = ("bash-completion/completions/{}", "zsh/site-functions/_{}", "fish/vendor_completions.d/{}.fish")
    for words in commands():
        wanted = options_of_help(words)
        assert "help" in wanted or words == ["spa"]
        page = (prefix / "share" / "man" / "man1" / f"{'-'.join(words)}.1").read_text().replace("\\-", "-")
        for place, form in ((page, r"\\fB--{}\\fR"), *(((prefix / "share" / where.format(words[0])).read_text(), how) for where, how in
                            ((bash, r"--{}[ ']"), (zsh, r"--{}[=\[]"), (fish, r" -l {} ")))):
            missing = [option for option in wanted if not re.search(form.format(option), place)]
            assert not missing, f"{words}: {missing}"
    pages = {path.stem for path in (prefix / "share" / "man" / "man1").iterdir()}
    assert pages == {"-".join(words) for words in commands()}


def test_install_man_pages_are_clean(prefix):
    pages = sorted((prefix / "share" / "man" / "man1").iterdir())
    for checker in ([tool("mandoc"), "-T", "lint", "-W", "style"], [tool("groff"), "-ww", "-man", "-T", "utf8"]):
        for page in pages:
            done = run(*checker, page)
            assert (done.returncode, done.stderr) == (0, ""), f"{page.name}: {done.stdout[:500]}{done.stderr}"
            assert "-T" != checker[1] or done.stdout == ""
    text = re.sub(".\x08", "", well(tool("man"), "-l", pages[0]))
    assert "SEE ALSO" in text


def completed(prefix, program, *words):
    """What bash offers for the last word."""
    line = " ".join(f"'{word}'" for word in words)
    script = f"source '{prefix}/share/bash-completion/completions/{program}'; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; " \
             f"$(complete -p {program} | sed 's/.*-F \\([^ ]*\\).*/\\1/'); printf '%s\\n' \"${{COMPREPLY[@]}}\""
    return [word for word in well("bash", "--norc", "-u", "-c", script, cwd=prefix).splitlines() if word]


def test_install_bash_completes(prefix):
    assert completed(prefix, "spa", "spa", "") == verbs(system.SPA)
    assert completed(prefix, "spa", "spa", "tr") == ["train"]
    for words in commands():
        offered = completed(prefix, words[0], *words, "--")
        assert sorted(offered) == sorted("--" + option for option in {*options_of_help(words), "help", *(["version"] if words == ["spa"] else [])})
    assert completed(prefix, "spa", "spa", "chat", "--late", "") == ["wait", "base", "error"]
    assert completed(prefix, "spa", "spa", "chat", "--late", "=", "b") == ["base"]
    assert completed(prefix, "spa", "spa", "chat", "--late", "=") == ["wait", "base", "error"]
    assert completed(prefix, "spa-cloud", "spa-cloud", "-lv", "d") == ["debug"]
    assert completed(prefix, "spa-cloud", "spa-cloud", "-m", "b") == ["bin"], "files"
    assert completed(prefix, "spa", "spa", "inspect", "b") == ["bin"], "files"
    assert completed(prefix, "spa", "spa", "chat", "--temp", "b") == [], "no files where a number is wanted"


def test_install_zsh_completion_parses(prefix):
    tool("zsh")
    for path in sorted((prefix / "share" / "zsh" / "site-functions").iterdir()):
        done = run("zsh", "-n", path)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_install_zsh_completion_describes_every_option(prefix):
    """What it hands to zsh's own _arguments and _describe, with those two out of the way."""
    tool("zsh")

    def handed(words):
        function = prefix / "share" / "zsh" / "site-functions" / f"_{words[0]}"
        script = f"_arguments() {{ print -rl -- \"$@\" }}; _describe() {{ print -rl -- ${{(P)2}} }}; words=({' '.join(words)}); " \
                 f"CURRENT={len(words)}; source {function}"
        return well("zsh", "-f", "-c", script).splitlines()
    spec = re.compile(r"(?:\*|\([-\w ]+\))--?([\w-]+)=?\[((?:[^][\\]|\\.)+)\](:(?:[^:\\]|\\.)*:.*)?")
    for words in commands():
        specs = [spec.fullmatch(line) for line in handed([*words, "--"]) if line != "*:file:_files"]
        assert all(specs)
        assert {s[1] for s in specs} >= set(options_of_help(words))
    assert [line.split(":")[0] for line in handed(["spa", "c"])] == verbs(system.SPA)


def test_install_fish_completes(prefix):
    tool("fish")
    folder = prefix / "share" / "fish" / "vendor_completions.d"
    for path in sorted(folder.iterdir()):
        done = run("fish", "--no-config", "-n", path)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr

    def offered(line):
        done = well("fish", "--no-config", "-c", f"source {folder}/spa.fish; source {folder}/spa-cloud.fish; complete -C '{line}'")
        return [row.split("\t")[0] for row in done.splitlines()]
    assert sorted(offered("spa ")) == sorted(verbs(system.SPA))
    for words in commands():
        assert {"--" + option for option in options_of_help(words)} <= {word.rstrip("=") for word in offered(f"{' '.join(words)} --")}
    assert sorted(offered("spa chat --late ")) == ["base", "error", "wait"]


# ---- mistyped ----

@pytest.mark.parametrize("words, nearest", [(["spa", "chta"], "'chat'"), (["spa", "chat", "--promt", "x"], "--prompt"), (["spa-cloud", "--prot", "1"], "--port"),
                                            (["spa-cloud", "anchor"], "'anchors'"), (["spa-cloud", "--log-levle=info"], "--log-level"),
                                            (["spa", "train", "--epoch", "3"], "--epochs")])
def test_install_a_mistyped_word_names_the_nearest(words, nearest):
    done = run(system.BUILD / words[0], *words[1:])
    assert done.returncode == 2
    assert f"did you mean {nearest}?" in system.one_sentence(done)
