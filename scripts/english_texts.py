"""Generates a free list of English sentences: `python scripts/english_texts.py --output texts`.

Writes train.txt and heldout.txt, one sentence per line, without overlap, deterministic for a given WordNet: examples
from WordNet's glosses (Debian's wordnet-base, WordNet licence), sequences of frequent words for coverage, numbers in
words, questions, and names of people and places. Entries marked as offensive or vulgar in WordNet are excluded.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from echotts.text.spoken import ordinal, spoken

WORDNET = Path("/usr/share/wordnet")
PARTS = ("noun", "verb", "adj", "adv")
UNWANTED = re.compile(
    r"offensive|disparag|derogat|vulgar|obscen|slur|sexual|genital|coit|intercourse|prostitut|rape|negro|nazi", re.I
)
USABLE = re.compile(r"[A-Za-z][A-Za-z ,;'-]*[A-Za-z][.?!]?")
COUNTS = {"sequences": 2500, "numbers": 1600, "questions": 900, "names": 1500}
HELDOUT = 500
ASK = (
    "Where is the {noun}?",
    "Have you seen my {noun}?",
    "Who left the {noun} near the {other}?",
    "Why does every {noun} need a {other}?",
    "Is this {noun} as {adj} as that one?",
    "How much is the {adj} {noun}?",
    "Which {noun} would you like?",
    "Did they ever {verb} it?",
    "Can you {verb} the {noun} for me?",
    "When will the {noun} be ready?",
    "What does the word {noun} mean?",
    "Would you rather have the {noun} or the {other}?",
)
NUMBERED = (
    "The answer is {n}.",
    "She counted {n} of them.",
    "It happened in {year}.",
    "They left at {time}.",
    "It costs ${money}.",
    "About {small}% of the people agreed.",
    "He came {nth} in the race.",
    "Chapter {small}, page {n}.",
    "My number is {digits}.",
    "There were {n} people and {small} chairs.",
    "The temperature fell to {small} degrees.",
    "{small} plus {small2} is {sum}.",
    "Meet me at {time} on the {nth} floor.",
    "From {year} to {year2} the town grew.",
    "{digits}",
)
NAMED = (
    "My name is {person}.",
    "{person} was born in {place}.",
    "Have you ever been to {place}?",
    "We flew from {place} to {place2}.",
    "This is {person}, from {place}.",
    "{person} and {person2} never met.",
    "They moved to {place} last year.",
    "{person} wrote about {place}.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for train.txt and heldout.txt")
    parser.add_argument("--wordnet", type=Path, default=WORDNET, help="folder of WordNet's data.* files")
    arguments = parser.parse_args()
    if not (arguments.wordnet / "data.noun").is_file():
        parser.exit(1, f"{arguments.wordnet}: no data.noun: apt-get install wordnet-base, or set --wordnet\n")
    texts = list(dict.fromkeys(sentences(arguments.wordnet)))
    order = np.random.default_rng(0).permutation(len(texts))
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, chosen in (("heldout", order[:HELDOUT]), ("train", np.sort(order[HELDOUT:]))):
        (arguments.output / f"{name}.txt").write_text("".join(f"{texts[i]}\n" for i in chosen))
        print(f"{arguments.output / name}.txt: {len(chosen)} sentences")


def sentences(wordnet: Path) -> Iterator[str]:
    """All sentences, some of them twice."""
    random = np.random.default_rng(0)
    glosses = {part: list(read_glosses(wordnet / f"data.{part}")) for part in PARTS}
    for part in PARTS:
        for _, gloss in glosses[part]:
            yield from examples(gloss)
    frequent = frequent_words(wordnet)
    weights = 1.0 / np.arange(10, 10 + len(frequent))
    for _ in range(COUNTS["sequences"]):
        chosen = random.choice(len(frequent), random.integers(2, 9), replace=False, p=weights / weights.sum())
        yield " ".join(frequent[i] for i in chosen)
    for _ in range(COUNTS["numbers"]):
        said = spoken(str(random.choice(NUMBERED)).format(**some_numbers(random)))
        yield said[0].upper() + said[1:]
    words = {}
    for part in ("noun", "verb", "adj"):
        known = {entry[0] for entry, _ in glosses[part]}
        words[part] = [word for word in frequent if word in known]
    for _ in range(COUNTS["questions"]):
        noun, other = random.choice(words["noun"][:3000], 2, replace=False)
        chosen = {"noun": noun, "other": other, "verb": random.choice(words["verb"][:500])}
        said = str(random.choice(ASK)).format(**chosen, adj=random.choice(words["adj"][:800]))
        yield re.sub(r"\ba (?=[aeiou])", "an ", said)
    people, places = names(glosses["noun"])
    for _ in range(COUNTS["names"]):
        person, person2 = random.choice(people, 2, replace=False)
        place, place2 = random.choice(places, 2, replace=False)
        yield str(random.choice(NAMED)).format(person=person, person2=person2, place=place, place2=place2)


def read_glosses(path: Path) -> Iterator[tuple[list[str], str]]:
    """(words, gloss) of each entry of a WordNet data file (wndb(5WN)), except unwanted ones."""
    for line in path.read_text().splitlines():
        if line.startswith("  "):  # the licence at the start of each file
            continue
        head, _, gloss = line.partition(" | ")
        fields = head.split()
        words = [fields[4 + 2 * i].replace("_", " ") for i in range(int(fields[3], 16))]
        if not UNWANTED.search(gloss) and not UNWANTED.search(" ".join(words)):
            yield words, gloss


def examples(gloss: str) -> Iterator[str]:
    """Quotations in a gloss of 2 to 14 plain words, with a capital and a full stop."""
    for quoted in re.findall(r'"([^"]+)"', gloss):
        said = quoted.strip(" ;,")
        if USABLE.fullmatch(said) and 2 <= len(said.split()) <= 14:
            yield said[0].upper() + said[1:] + ("" if said[-1] in ".?!" else ".")


def frequent_words(wordnet: Path) -> list[str]:
    """Plain words by frequency in WordNet's corpora, the most frequent first."""
    counts: dict[str, int] = {}
    for line in (wordnet / "cntlist.rev").read_text().splitlines():
        key, _, count = line.split()
        word = key.partition("%")[0]
        if word.isalpha() and len(word) > 1 and not UNWANTED.search(word):
            counts[word] = counts.get(word, 0) + int(count)
    return sorted(counts, key=lambda word: (-counts[word], word))


def names(nouns: list[tuple[list[str], str]]) -> tuple[list[str], list[str]]:
    """People and places: capitalised entries whose gloss contains years or a kind of place."""
    people, places = set(), set()
    for words, gloss in nouns:
        for word in words:
            if not re.fullmatch(r"[A-Z][a-z]+(?: [A-Z][a-z]+){0,2}", word):
                continue
            if re.search(r"\(\d{4}-\d{4}\)", gloss) and " " in word:
                people.add(word)
            elif re.match(r"(a|the) [a-z -]*(city|town|country|republic|river|state|island|capital)\b", gloss):
                places.add(word)
    return sorted(people), sorted(places)


def some_numbers(random: np.random.Generator) -> dict[str, str | int]:
    small, small2 = random.integers(2, 100, 2)
    return {
        "n": int(10 ** random.uniform(0, 6)),
        "small": small,
        "small2": small2,
        "sum": small + small2,
        "year": random.integers(1100, 2030),
        "year2": random.integers(1100, 2030),
        "nth": ordinal(int(random.integers(1, 60))),
        "time": f"{random.integers(1, 13)}:{random.integers(0, 60):02d}",
        "money": f"{random.integers(1, 500)}" + random.choice(["", f".{random.integers(5, 100):02d}"]),
        "digits": " ".join(str(digit) for digit in random.integers(0, 10, random.integers(3, 8))),
    }


if __name__ == "__main__":
    main()
