"""Synthetic tasks with answers that can be checked, each with a reasoning trace.

Every generator returns a `Sample`: the user's question, the reasoning (what stands between <think> and
</think>), the final answer as the model should say it, and `expect`, the string that a correct answer holds.
Questions come in English and in Portuguese, so that different experts see different traffic.
"""
from __future__ import annotations

import functools
import json
import random
import string
from dataclasses import dataclass, field


@dataclass
class Sample:
    task: str
    question: str
    think: str
    answer: str
    expect: str
    history: list = field(default_factory=list)  # earlier (question, answer) turns
    by_letter: bool = False  # the answer is written one letter a token, whatever longer tokens there are


WORDS = """apple river window planet strawberry banana orange guitar yellow garden market bridge forest silver
castle dragon pocket rocket summer winter spring autumn kitten rabbit turtle monkey pepper butter coffee sugar
bottle mirror ladder hammer basket candle carpet curtain pillow blanket mountain valley island desert ocean
harbor engine wheel driver pilot doctor teacher painter singer dancer writer farmer soldier captain sailor
letter number circle square triangle colour shadow thunder lightning rainbow cloud storm breeze feather
library museum station airport village city country continent world moon star comet galaxy orbit gravity
cabelo janela cadeira cidade amigo escola livro caneta papel mesa porta sapato camisa chuva vento praia
areia peixe gato cachorro cavalo passaro arvore flor folha fruta laranja limao uva melancia abacaxi""".split()
NAMES = """Ana Bruno Carla Diego Elena Felix Gina Hugo Ines Jorge Karen Lucas Marta Nina Oscar Paula Rui Sara
Tomas Vera Alice Bob Clara David Emma Frank Grace Henry Ivy Jack""".split()
CITIES = "Lisbon Porto Paris London Berlin Madrid Rome Vienna Prague Oslo Tokyo Lima Cairo Delhi Recife".split()
COLOURS = "red blue green yellow black white orange purple pink brown".split()
OBJECTS = "box bag drawer shelf jar chest cup tray crate case".split()


def _digits(n: int) -> str:
    return " ".join(str(n))


def addition(r: random.Random) -> Sample:
    width = r.choice([1, 2, 2, 3, 3, 4, 4])
    a, b = r.randrange(10 ** (width - 1), 10 ** width), r.randrange(0, 10 ** r.randint(1, width))
    lines, carry = [], 0
    x, y = str(a)[::-1], str(b)[::-1]
    for i in range(max(len(x), len(y))):
        p, q = int(x[i]) if i < len(x) else 0, int(y[i]) if i < len(y) else 0
        total = p + q + carry
        lines.append(f"{p} + {q} + {carry} = {total}, write {total % 10}, carry {total // 10}")
        carry = total // 10
    if carry:
        lines.append(f"write {carry}")
    lines.append(f"So {_digits(a + b)}.")
    question = r.choice([f"What is {a} + {b}?", f"Add {a} and {b}.", f"Quanto é {a} + {b}?", f"{a} + {b} = ?"])
    return Sample("addition", question, "\n".join(lines), f"{a} + {b} = {a + b}", str(a + b))


def count_letter(r: random.Random) -> Sample:
    word = r.choice(WORDS)
    letter = r.choice(word) if r.random() < 0.85 else r.choice(string.ascii_lowercase)
    n, parts = 0, []
    for c in word:
        if c == letter:
            n += 1
            parts.append(f"{c} {n}")
        else:
            parts.append(c)
    question = r.choice([
        f"How many times does the letter {letter} appear in {word}?",
        f"How many {letter}'s are in {word}?",
        f"Quantas letras {letter} tem a palavra {word}?"])
    return Sample("count_letter", question, f"Spell: {', '.join(parts)}. Total {n}.", f"The answer is {n}.", f" {n}.")


def reverse_word(r: random.Random) -> Sample:
    word = r.choice(WORDS) if r.random() < 0.5 else "".join(r.choices(string.ascii_lowercase, k=r.randint(3, 8)))
    question = r.choice([f"Reverse the word {word}.", f"Spell {word} backwards.", f"Escreva {word} ao contrário."])
    return _reversal("reverse", question, word)


def _reversal(task: str, question: str, word: str) -> Sample:
    """Letters are numbered, so that each has its place even where one occurs twice."""
    letters = [f"{i}{c}" for i, c in enumerate(word, 1)]
    think = f"Letters: {' '.join(letters)}\nBackwards: {' '.join(reversed(letters))}"
    return Sample(task, question, think, word[::-1], word[::-1], by_letter=True)


def sort_numbers(r: random.Random) -> Sample:
    """One line for each ten: to find all numbers that begin with a digit, then to order those few, is easier than to look for
    the smallest of all again and again."""
    shown = r.sample(range(1, 100), r.randint(3, 6))
    lines = []
    for ten in range(10):
        here = sorted(n for n in shown if n // 10 == ten)
        lines.append(f"{ten}: {' '.join(map(str, here)) or 'none'}")
    listing = ", ".join(map(str, shown))
    question = r.choice([f"Sort these numbers: {listing}.", f"Put in order: {listing}", f"Ordene os números: {listing}."])
    answer = ", ".join(map(str, sorted(shown)))
    return Sample("sort", question, "\n".join(lines), answer, answer)


def extreme(r: random.Random) -> Sample:
    numbers = r.sample(range(1, 1000), r.randint(3, 7))
    largest = r.random() < 0.5
    best, steps = numbers[0], []
    for n in numbers[1:]:
        better = n > best if largest else n < best
        steps.append(f"{n} or {best}: {n if better else best}")
        best = n if better else best
    word = "largest" if largest else "smallest"
    palavra = "maior" if largest else "menor"
    listing = ", ".join(map(str, numbers))
    question = r.choice([f"Which is the {word}: {listing}?", f"Qual é o {palavra}: {listing}?"])
    return Sample("extreme", question, "\n".join(steps), f"The {word} is {best}.", f" {best}.")


def clock(r: random.Random) -> Sample:
    h, m, d = r.randrange(24), r.randrange(0, 60, 5), r.choice([5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55])
    total = m + d
    think = f"{m} + {d} = {total}. "
    think += f"{total} - 60 = {total - 60}, next hour {(h + 1) % 24}." if total >= 60 else f"Same hour {h}."
    hh, mm = ((h + 1) % 24, total - 60) if total >= 60 else (h, total)
    question = r.choice([f"It is {h:02d}:{m:02d}. What time is it in {d} minutes?",
                         f"São {h:02d}:{m:02d}. Que horas são daqui a {d} minutos?"])
    return Sample("clock", question, think, f"It will be {hh:02d}:{mm:02d}.", f"{hh:02d}:{mm:02d}")


def roman(r: random.Random) -> Sample:
    n = r.randint(1, 399)
    left, steps, out = n, [], ""
    for value, sign in [(100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")]:
        while left >= value:
            left -= value
            out += sign
            steps.append(f"{sign} {left}")
    question = r.choice([f"Write {n} in Roman numerals.", f"Escreva {n} em números romanos."])
    return Sample("roman", question, f"{n}: " + ", ".join(steps), out, out)


def recall_name(r: random.Random) -> Sample:
    name, city, colour = r.choice(NAMES), r.choice(CITIES), r.choice(COLOURS)
    history = [(f"Hi, my name is {name}, I live in {city} and I like {colour}.", f"Nice to meet you, {name}!")]
    if r.random() < 0.4:
        other = r.choice([addition, reverse_word, extreme])(r)
        history.append((other.question, other.answer))
    ask, value, answer = r.choice([
        ("What is my name?", name, f"Your name is {name}."),
        ("Where do I live?", city, f"You live in {city}."),
        ("Which colour do I like?", colour, f"You like {colour}.")])
    return Sample("recall", ask, f"The user said {value}.", answer, value, history)


def lookup(r: random.Random, entries: int | None = None) -> Sample:
    n = entries or r.choice([3, 4, 6, 8, 10, 16])
    keys = r.sample(range(100, 1000), n)
    facts = [(k, r.choice(COLOURS), r.choice(OBJECTS)) for k in keys]
    k, colour, thing = r.choice(facts)
    listing = " ".join(f"Item {i} is a {c} {t}." for i, c, t in facts)
    return Sample("lookup", f"{listing} What is item {k}?", f"Item {k} is a {colour} {thing}.",
                  f"It is a {colour} {thing}.", f"{colour} {thing}")


def to_json(r: random.Random) -> Sample:
    name, age, city = r.choice(NAMES), r.randint(18, 80), r.choice(CITIES)
    value = json.dumps({"name": name, "age": age, "city": city})
    question = r.choice([f"Give JSON with name, age and city: {name} is {age} and lives in {city}.",
                         f"{name} is {age} years old and lives in {city}. Answer as JSON with name, age and city."])
    return Sample("json", question, f"name {name}, age {age}, city {city}", value, value)


TASKS = {f.__name__: f for f in (addition, count_letter, reverse_word, sort_numbers, extreme, clock, roman,
                                 recall_name, lookup, to_json)}


# Practice that no evaluation asks.

def spell(r: random.Random) -> Sample:
    """For reversal: words without sense, so the letters of every token are learnt, those of the known words' among them."""
    if r.random() < 0.4:
        word = "".join(r.choices(string.ascii_lowercase, k=r.randint(2, 8)))
    else:
        word = ""
        while len(word) < 2:
            parts = [r.choice(WORDS) for _ in range(2)]
            word = parts[0][:r.randint(0, 5)] + parts[1][-r.randint(1, 5):]
    return _reversal("spell", f"Spell {word} backwards.", word)


def lookups(r: random.Random) -> Sample:
    """For lookup: all facts of a list, in another order."""
    facts = [(k, r.choice(COLOURS), r.choice(OBJECTS)) for k in r.sample(range(100, 1000), r.randint(2, 8))]
    listing = " ".join(f"Item {i} is a {c} {t}." for i, c, t in facts)
    r.shuffle(facts)
    think = " ".join(f"Item {i} is a {c} {t}." for i, c, t in facts)
    asked, given = (", ".join(parts) for parts in zip(*((str(i), f"{c} {t}") for i, c, t in facts)))
    return Sample("lookups", f"{listing} What are items {asked}?", think, f"They are {given}.", given)


def echo(r: random.Random) -> Sample:
    """For all that copy: words and numbers in no order that could be guessed."""
    said = " ".join(r.choice([r.choice(WORDS), str(r.randrange(1000))]) for _ in range(r.randint(4, 16)))
    return Sample("echo", f"Repeat: {said}", said, said, said)


# How often each is drawn in training: the ones that copy exactly need most practice.
WEIGHTS = {addition: 6, count_letter: 4, reverse_word: 10, spell: 16, sort_numbers: 30, extreme: 9, clock: 4, roman: 3,
           recall_name: 3, lookup: 6, lookups: 4, echo: 3, to_json: 2}


EVALUATION_SEED, HELD_OUT = 10_000, 100


def evaluation(per_task: int) -> dict:
    """The evaluation's samples of each task. The first HELD_OUT are never drawn for training."""
    return {name: [task(r) for r in [random.Random(EVALUATION_SEED + k)] for _ in range(per_task)]
            for k, (name, task) in enumerate(TASKS.items())}


def draw(r: random.Random) -> Sample:
    while True:
        sample = r.choices(list(WEIGHTS), weights=list(WEIGHTS.values()))[0](r)
        if prompt_of(sample) not in held_out():
            return sample


@functools.cache
def held_out() -> frozenset:
    return frozenset(prompt_of(s) for samples in evaluation(HELD_OUT).values() for s in samples)


BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"


def prompt_of(sample: Sample) -> str:
    turns = "".join(f"{USER}{q}{ASSISTANT}{a}{EOS}" for q, a in sample.history)
    return f"{BOS}{turns}{USER}{sample.question}{ASSISTANT}<think>\n"


def reply_of(sample: Sample) -> list[str]:
    """The pieces of the reply, each to be encoded by itself."""
    think = f"{sample.think}\n</think>\n\n"
    return [think, *sample.answer, EOS] if sample.by_letter else [f"{think}{sample.answer}{EOS}"]
