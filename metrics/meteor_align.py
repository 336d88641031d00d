"""METEOR's alignment: the jar's beam search selects which of all possible matches are used.

Source: Denkowski and Lavie 2014, section 2. Each word of either text is in at most one match. Among the
alignments that satisfy this, the search prefers, in this order of importance, the one that

    1  covers most words, counted as in the jar's search: exact matches in full, others by halves, rounded down
       for each side of each match (see `match` in metrics/meteor_match.py)
    2  has the fewest chunks, runs of matches that are adjacent and in the same order in both texts
    3  has the smallest sum of |start in hypothesis - start in reference|

It reads the reference word by word, and extends each partial alignment by every match that begins at the
word, and by skipping the word. After each word the partial alignments are sorted and the best 40 are kept.

Worked example. Hypothesis "the cat the", reference "the cat": "cat" has one match, and no other match touches
its words, so it is fixed in advance. "the" matches the first or the third word of the hypothesis. Both cover the
same number of words; the first gives one chunk, the third gives two. The first wins.

The search reproduces the jar's, including details that look accidental, because they show in a tie or a full beam:
* Partial alignments that tie keep the order in which they were made: matches as listed, skipping last.
* The distance of a match is added not to the alignment that uses it but to those made *after* it at the
  same word (the next matches in the list, and the skip).
* A stem or synonym match gains nothing in 1, and as a chunk of its own it costs one in 2. So it is used only
  if it adds no chunk or if it is certain. "cats" and "cat" match twice, by stem and by synonym, so neither
  match is certain, and the two words by themselves score 0.
* The chunk that is still open is not counted until the reference's last word has been passed.

Only the bookkeeping differs from the jar's. Two partial alignments with the same words used, the same open chunk
and the same next word have the same future. The worse of them can never win, but it occupies one of the 40
places. So both costs stay in the beam while the two share one node, and each node is extended once.
At certain words (fixed, or without a match) all partial alignments are treated the same, except that the first of
these words can close a chunk. So the search stops only at words that offer a choice.

Left out: nothing. Every partial alignment that the jar keeps is kept.
"""

from operator import itemgetter
from typing import NamedTuple

from metrics.meteor_match import Match

BEAM_SIZE = 40
NO_CHUNK = -1  # no chunk is open


class Arrival(NamedTuple):
    """How a partial alignment reaches the next stop, after using a match or skipping a word at this one."""

    chunk_end: int  # a match that begins here in the hypothesis continues the open chunk; or NO_CHUNK
    free_from: int  # the first word of the reference not passed yet; past the stop if a long match covers the stop
    closed_at: int | None  # the certain word on the way that closed a chunk, if one did
    step: tuple[int, Match] | None  # where in the reference the match begins, and the match; None for skipping
    code: int  # chunk_end and free_from as one number


# A partial alignment: (future, used, arrival, parent). `used` has a bit for each word of the hypothesis that is used
# and that a later match touches; `future` is `used` and arrival.code as one number; `parent` is the node it extends,
# or None. A plain tuple, because scoring one system makes about a million of them.
Node = tuple
Entry = tuple[int, Node]  # of the beam: (cost, node)
cost_of = itemgetter(0)


def align(matches: list[list[Match]]) -> list[tuple[int, Match]]:
    """The best alignment: (start in the reference, match), from left to right.

    matches: for each word of the reference, the matches that begin there (Matcher.matches).
    """
    fixed, choices = fix_certain(matches)
    chosen = [(start, match) for start, match in enumerate(fixed) if match is not None]
    if any(choices):
        chosen += _Search(fixed, choices).best()
        chosen.sort()
    return chosen


def fix_certain(matches: list[list[Match]]) -> tuple[list[Match | None], list[list[Match]]]:
    """(for each word of the reference its certain match or None, for each word the matches to choose from).

    A match is certain if it is the only one that begins at its word and no other match touches any of its words.
    """
    hyp_once = hyp_twice = ref_once = ref_twice = 0  # words, as bits, covered by at least one and at least two matches
    for start, choices in enumerate(matches):
        for _module, _hyp_start, _hyp_length, ref_length, hyp_words, _gain in choices:
            hyp_twice |= hyp_once & hyp_words
            hyp_once |= hyp_words
            ref_words = ((1 << ref_length) - 1) << start
            ref_twice |= ref_once & ref_words
            ref_once |= ref_words
    fixed: list[Match | None] = [None] * len(matches)
    open_choices = list(matches)
    for start, choices in enumerate(matches):
        if len(choices) == 1:
            only = choices[0]
            ref_words = ((1 << only.ref_length) - 1) << start
            if not (only.hyp_words & hyp_twice or ref_words & ref_twice):
                fixed[start] = only
                open_choices[start] = []
    return fixed, open_choices


class _Search:
    """The beam search for one pair of texts. A "stop" is a word of the reference at which uncertain matches begin; the
    last stop is the reference's end."""

    def __init__(self, fixed: list[Match | None], choices: list[list[Match]]):
        self.fixed, self.choices = fixed, choices
        length = len(choices)
        self.stops = [start for start, at_start in enumerate(choices) if at_start] + [length]
        # fixed_end[j]: where in the hypothesis the fixed match ends that ends just before word j of the reference.
        self.fixed_end = [NO_CHUNK] * (length + 1)
        for start, match in enumerate(fixed):
            if match is not None:
                self.fixed_end[start + match.ref_length] = match.hyp_start + match.hyp_length
        # One number orders the beam: by gain, then by chunks, then by distance, which is at most `distances`.
        distances, last_end = 0, max(self.fixed_end)
        for stop in self.stops[:-1]:
            for match in choices[stop]:
                distances += abs(stop - match.hyp_start)
                last_end = max(last_end, match.hyp_start + match.hyp_length)
        self.chunk_cost = distances + 1
        self.gain_cost = self.chunk_cost * (length + 2)
        self.end_bits = (last_end + 1).bit_length()  # an Arrival's code: free_from << end_bits | chunk_end + 1
        self.code_bits = self.end_bits + length.bit_length()  # a Node's future: used << code_bits | code

    def best(self) -> list[tuple[int, Match]]:
        """The matches that the best alignment chooses, from right to left."""
        wanted = {self.stops[-1]: 0}  # stop -> words of the hypothesis, as bits, touched by matches there or later
        for stop, next_stop in zip(self.stops[-2::-1], self.stops[:0:-1]):
            wanted[stop] = wanted[next_stop]
            for match in self.choices[stop]:
                wanted[stop] |= match.hyp_words

        beam: list[Entry] = [(0, (0, 0, self.arrive(NO_CHUNK, 0, self.stops[0], None), None))]
        for stop, next_stop in zip(self.stops, self.stops[1:]):
            # Of nodes with the same future keep the first, which is the best: the last one put into the dict wins.
            nodes = {node[0]: node for _cost, node in reversed(beam)}
            children, closing_places = self.children_of(nodes, stop, next_stop, wanted[next_stop])
            beam = [(cost + extra, child) for cost, node in beam for extra, child in children[node[0]]]
            beam.sort(key=cost_of)
            beam = self.close_chunks(beam[:BEAM_SIZE], closing_places)

        # An open chunk has not been counted yet. min() returns the first of equals, as the jar does.
        finals = [(cost + (self.chunk_cost if node[2].chunk_end != NO_CHUNK else 0), node) for cost, node in beam]
        _best_cost, node = min(finals, key=cost_of)
        chosen = []
        while node is not None:
            _future, _used, arrival, node = node
            if arrival.step is not None:
                chosen.append(arrival.step)
        return chosen

    def arrive(self, chunk_end: int, free_from: int, next_stop: int, step: tuple[int, Match] | None) -> Arrival:
        """Pass the certain words from `free_from` up to the next stop."""
        closed_at = None
        if free_from < next_stop:
            first = self.fixed[free_from]
            if chunk_end != NO_CHUNK and (first is None or first.hyp_start != chunk_end):
                closed_at = free_from
            chunk_end, free_from = self.fixed_end[next_stop], next_stop
        return Arrival(chunk_end, free_from, closed_at, step, free_from << self.end_bits | chunk_end + 1)

    def children_of(
        self, nodes: dict[int, Node], stop: int, next_stop: int, wanted: int
    ) -> tuple[dict[int, list[Entry]], set[int]]:
        """All extensions of the nodes at the word `stop`.

        Returns (a node's future -> [(extra cost, child)] in the jar's order, the words at which chunks close on
        the way to the next stop). The extra costs do not include those chunks: `close_chunks` adds them.
        """
        ways, places = [], set()
        for match in self.choices[stop]:
            hyp_start = match.hyp_start
            arrival = self.arrive(hyp_start + match.hyp_length, stop + match.ref_length, next_stop, (stop, match))
            gain, distance = self.gain_cost * match.gain, abs(stop - hyp_start)
            ways.append((match.hyp_words, hyp_start, gain, distance, arrival.code, arrival))
            places.add(arrival.closed_at)
        skip = self.arrive(NO_CHUNK, stop + 1, next_stop, None)
        code_bits, chunk_cost = self.code_bits, self.chunk_cost

        children = {}
        for future, node in nodes.items():
            _future, used, (chunk_end, free_from, _closed_at, _step, _code), _parent = node
            if free_from > stop:  # a long match covers this word
                arrival = self.arrive(chunk_end, free_from, next_stop, None)
                places.add(arrival.closed_at)
                used &= wanted
                children[future] = [(0, (used << code_bits | arrival.code, used, arrival, node))]
                continue
            children[future] = found = []
            distance = 0
            for hyp_words, hyp_start, gain, way_distance, code, arrival in ways:
                if not used & hyp_words:
                    extra = distance - gain
                    if hyp_start != chunk_end != NO_CHUNK:
                        extra += chunk_cost
                    distance += way_distance  # added to the extensions after this one, not to this one
                    now_used = (used | hyp_words) & wanted
                    found.append((extra, (now_used << code_bits | code, now_used, arrival, node)))
            if chunk_end != NO_CHUNK:
                distance += chunk_cost
            used &= wanted
            found.append((distance, (used << code_bits | skip.code, used, skip, node)))
        return children, places - {None}

    def close_chunks(self, beam: list[Entry], places: set[int]) -> list[Entry]:
        """Add the cost of the chunks closed on the way to the next stop. `beam` is sorted, and so is the result.

        The words are processed in order, because the jar sorts after each word, and each sort affects the order
        of those that tie.
        """
        chunk_cost = self.chunk_cost
        for place in sorted(places):
            beam = [(cost + chunk_cost, node) if node[2][2] == place else (cost, node) for cost, node in beam]
            beam.sort(key=cost_of)
        return beam
